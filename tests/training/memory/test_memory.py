"""What a step keeps: counted without weights as with them, by fewer bits, and by blocks that run again."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.offload.disk.plan import block_bytes
from diffusers_flux_ext.offload.disk.stream import stream_of
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.config.reading import ConfigurationError
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.frozen import store_frozen
from diffusers_flux_ext.training.memory import (
    Needs,
    Setting,
    choose_setting,
    count_activations,
    predict,
    read_budget,
    saved_bytes,
)
from diffusers_flux_ext.training.run import memory
from diffusers_flux_ext.training.run.build import build_run
from diffusers_flux_ext.training.run.sharding import check_sharding
from diffusers_flux_ext.training.streaming import stream_blocks
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora
from tests.training.samples import CANVAS, batch


OPTIONS = LoRAOptions("attention+mlp", rank=2)


def kept(storage=None, every=0, dtype=torch.float32):
    """What a real step keeps besides weights, with gradients to its LoRA."""
    transformer = tiny_transformer(0).to(dtype).requires_grad_(False)
    if storage is not None:
        store_frozen(transformer, storage)
    lora = add_lora(transformer, OPTIONS)
    checkpoint_blocks(transformer, every)
    given = batch([])
    given = batch(
        [], prompt_embeds=given.prompt_embeds.to(dtype), pooled_prompt_embeds=given.pooled_prompt_embeds.to(dtype)
    )
    torch.manual_seed(0)
    for parameter in lora.named_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    found = []
    with FluxTraining(transformer) as training:
        losses = []
        weights = [*transformer.parameters(), *transformer.buffers()]
        found = saved_bytes(lambda: losses.append(training.train()(given)), weights)
        losses[0].sum().backward()
    return sum(found), {name: parameter.grad for name, parameter in lora.named_parameters().items()}


def counted(every):
    config = tiny_transformer(0).config
    counts = count_activations(config, torch.float32, CANVAS.num_tokens, 16, OPTIONS)
    needs = predict(tiny_transformer(0), counts, Setting(checkpointing=every), torch.float32, 0, 0)
    return needs.activations


@pytest.mark.parametrize("every", [0, 1, 2])
def test_what_is_counted_without_weights_is_what_a_step_keeps(every):
    real, _ = kept(every=every)
    # Attention on the CPU keeps one number less for each row, or one more.
    assert counted(every) == pytest.approx(real, rel=0.04)


def test_blocks_that_run_again_keep_less_and_give_the_same_gradients():
    sizes, gradients = zip(*(kept(every=every) for every in (0, 2, 1)))
    assert sizes[0] > 1.3 * sizes[1] > 1.3 * 1.3 * sizes[2]
    for others in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        checkpoint_blocks(tiny_transformer(0), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_bits_keep_no_raised_weights(dtype):
    plain, _ = kept(dtype=dtype)
    stored, _ = kept("fp8", dtype=dtype)
    raised = sum(each.numel() for each in tiny_transformer(0).transformer_blocks.parameters()) * dtype.itemsize
    assert stored <= plain < plain + raised / 4


def needs(setting):
    weights = {None: 240, "fp8": 120, "nf4": 60}[setting.storage]
    activations = setting.batch_size * {0: 100, 2: 60, 1: 20}[setting.checkpointing]
    return Needs(weights * 10**8, 0, 0 if setting.cache else 10**10, activations * 10**8, 0)


@pytest.mark.parametrize(
    ("budget", "setting"),
    [
        ("80GB", Setting(None, 0, 4, False)),
        ("48GB", Setting(None, 0, 1, False)),
        ("38GB", Setting(None, 0, 1, True)),
        ("33GB", Setting(None, 2, 1, True)),
        ("24GB", Setting("fp8", 0, 1, True)),
        ("16GB", Setting("fp8", 1, 1, True)),
        ("10GB", Setting("nf4", 1, 1, True)),
    ],
)
def test_the_setting_that_computes_least_is_chosen(budget, setting):
    plan = choose_setting(read_budget(budget), needs, 0, batch_sizes=(1, 2, 4))
    assert plan.setting == setting
    assert plan.training.peak <= read_budget(budget)
    assert f"For {budget[:-2]}.0 GB" in plan.describe()


def smaller(setting):
    """As above, where inputs in host memory and streamed blocks take less."""
    whole = needs(setting)
    weights = whole.weights if setting.resident is None else 10**9 + setting.resident
    return Needs(weights, 0, whole.encoders, whole.activations // (1 + setting.offload), 0, moved=10**9)


@pytest.mark.parametrize(
    ("budget", "setting", "said"),
    [
        ("8GB", Setting("nf4", 1, offload=True), "storage nf4, checkpointing all blocks with inputs in host memory"),
        ("5GB", Setting("fp8", 1, resident=11 * 10**8), "fp8, all but 1.1 GB of blocks streamed, checkpointing all"),
        ("3GB", Setting("fp8", 1, offload=True, resident=2 * 10**8), "all but 0.2 GB of blocks streamed"),
    ],
)
def test_what_waits_in_host_memory_is_chosen_last(budget, setting, said):
    plan = choose_setting(read_budget(budget), smaller, 0)
    assert plan.setting == setting
    assert plan.training.peak <= read_budget(budget)
    assert said in plan.describe()
    assert "copies from and to host memory: 1.0 GB a batch" in plan.describe()
    with pytest.raises(ValueError, match="can be chosen"):
        choose_setting(read_budget("3GB"), smaller, 0, streamed=())


@pytest.mark.parametrize("storage", [None, "fp8"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_predicted_weights_of_streamed_blocks_are_those_that_are_there(storage, share):
    transformer = tiny_transformer(0).requires_grad_(False)
    plan = Setting(storage, 1, resident=int(share * sum(block_bytes(transformer).values())))
    if storage is not None:
        plan = Setting(storage, 1, resident=plan.resident // 4)
        store_frozen(transformer, storage)
    counts = count_activations(transformer.config, torch.float32, CANVAS.num_tokens, 16, OPTIONS)
    predicted = predict(tiny_transformer(0), counts, plan, torch.float32, 0, 0)
    stream = stream_blocks(transformer, torch.device("cpu"), plan.resident)
    there = sum(each.nbytes for each in transformer.parameters()) + 2 * max(block.size for block in stream.blocks)
    assert predicted.weights == there
    whole = predict(tiny_transformer(0), counts, Setting(storage, 1), torch.float32, 0, 0)
    waiting = predict(tiny_transformer(0), counts, Setting(storage, 1, offload=True), torch.float32, 0, 0)
    assert (predicted.weights < whole.weights) == (share == 0)
    assert waiting.activations < whole.activations
    blocks = len(transformer.transformer_blocks) * [counts.double_input]
    blocks += len(transformer.single_transformer_blocks) * [counts.single_input]
    assert waiting.moved == 2 * sum(blocks)
    assert whole.activations - waiting.activations == sum(blocks) - max(blocks)


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(ValueError, match=r"is 5\.0 GB.*at least 8\.0 GB"):
        choose_setting(read_budget("5 GB"), needs, 0)
    assert read_budget("1GiB") == 2**30
    assert read_budget(" 1.5 gb ") == 1_500_000_000
    for wrong in ("12", "12 MB", "-3GB", "0GB", "all"):
        with pytest.raises(ValueError, match="expected an amount of memory"):
            read_budget(wrong)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 4))


def content(data, folder, **changes):
    made = {
        "output": str(folder / "run"),
        "model": {"path": "tiny"},
        "data": {"sources": [{"path": data}], "sizes": {"listed": {"listed": [[64, 64]]}}, "text_length": 16},
        "train": {"lora": {"rank": 2}, "memory": "0.7GB"},
        "run": {"updates": 1, "accumulation": 4, "logs": ["jsonl"]},
    }
    for name, value in changes.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def test_a_run_takes_what_the_plan_says(data, tmp_path, capsys, monkeypatch):
    config = read_config(content(data, tmp_path))
    run = build_run(config)
    assert (run.config.run.batch_size, run.config.run.accumulation) == (4, 1)
    assert "Predicted peak while training: " in run.report
    # As if the model were large: everything has to be made smaller.
    monkeypatch.setattr(
        memory, "choose_setting", lambda *args, **options: choose_setting(read_budget("16GB"), needs, 0, **options)
    )
    small = build_run(read_config(content(data, tmp_path / "small")))
    assert small.config.model.storage == "fp8"
    assert small.config.data.cache == f"{tmp_path / 'small'}/run/cache"
    assert (small.config.run.batch_size, small.config.run.accumulation) == (1, 4)
    assert small.training.transformer.is_gradient_checkpointing
    assert small()


def test_a_run_streams_where_the_plan_says(data, tmp_path, monkeypatch):
    # The tiny model's blocks would all fit in what this plan leaves for them.
    plan = choose_setting(read_budget("3GB"), smaller, 0)
    plan = replace(plan, setting=replace(plan.setting, resident=0))
    monkeypatch.setattr(memory, "choose_setting", lambda *args, **options: plan)
    run = build_run(read_config(content(data, tmp_path)))
    assert (run.config.model.resident, run.config.model.offload_activations) == ("0.0GB", True)
    assert stream_of(run.training.transformer) is not None
    assert run()


def test_the_flag_of_the_command(data, tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text(str(content(data, tmp_path, train={"memory": None})).replace("None", "null"))
    assert main(["train", str(path), "--memory", "2GB", "--dry-run"]) == 0
    assert "For 2.0 GB: storage as it is, checkpointing off, batches of 4, without a cache" in capsys.readouterr().out
    assert main(["train", str(path), "--memory", "2MB", "--dry-run"]) != 0
    assert "train.memory" in capsys.readouterr().err


def test_encoders_that_do_not_fit_are_told_of(data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "encoder_bytes", lambda *given: (10**9, 2 * 10**9))
    config = read_config(content(data, tmp_path, model={"device": "auto"}, train={"memory": "1.9GB"}))
    with pytest.raises(ValueError, match=r"takes about 2\.0 GB.*`--stage cache` and `model.device=cpu`"):
        build_run(config)


def test_what_cannot_be_planned_is_refused(data, tmp_path):
    for changes in ({"train": {"lora": None, "weights": ["*"]}}, {"train": {"text_encoder_lora": {"rank": 2}}}):
        with pytest.raises(ConfigurationError, match="plans a LoRA of the transformer without conditions"):
            read_config(content(data, tmp_path, **changes))
    with pytest.raises(ConfigurationError, match="gradient_checkpointing"):
        read_config(content(data, tmp_path, model={"gradient_checkpointing": -1}))


@pytest.mark.parametrize("storage", ["fp8", "nf4"])
def test_weights_in_fewer_bits_are_not_shared_out(data, tmp_path, storage):
    config = read_config(content(data, tmp_path, model={"storage": storage}))
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with pytest.raises(ValueError, match=f"`model.storage` is '{storage}', but {kind.value} shares out"):
            check_sharding(config, SimpleNamespace(distributed_type=kind))
    check_sharding(config, SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    check_sharding(read_config(content(data, tmp_path)), SimpleNamespace(distributed_type=DistributedType.FSDP))
