"""Training whose weights are shared out over two processes by the shipped files, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.support.processes import forking
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run import build, sharding
from diffusers_flux_ext.training.run.checks import check_run
from diffusers_flux_ext.training.run.sharding import check_sharding, shard, warn_if_needless
from tests.fixtures.documentation import ROOT
from tests.fixtures.training_runs import LAUNCH, REGIONS, content, curve, train_on_the_cpu, write


FILES = ROOT / "examples" / "training" / "accelerate"
# Adam would turn the rounding of tiny gradients into whole steps.
SGD = {"name": "torch.optim.SGD", "lr": 0.1, "options": {"momentum": 0.5}}
KINDS = {
    "lora": {"conditions": [REGIONS]},
    "full": {"train": {"lora": None, "weights": ["*.attn.*", "proj_out*"]}, "optimizer": {**SGD, "lr": 0.01}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 7))


def train_and_count(path, launch):
    """Train, and count how often weights were shared out."""
    with mock.patch.object(build, "shard", wraps=shard) as shared:
        return train_on_the_cpu(path, launch), shared.call_count


def train_as_two(path, name):
    """Train in two processes with the environment that `accelerate launch` makes of a shipped file."""
    forking()
    file = str(FILES / f"{name}.yaml")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "-m", "train"]))
    launch = {key: value for key, value in prepare_multi_gpu_env(args).items() if key.startswith(LAUNCH)}
    alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "shared"}
    config = LaunchConfig(1, 1, 2, start_method="forkserver", monitor_interval=0.1, **alone)
    assert elastic_launch(config, train_and_count)(path, launch) == {0: (0, 1), 1: (0, 1)}


def made(data, folder, kind, **run):
    settings = {"optimizer": SGD, "validation": {"every": 2}, **KINDS[kind]}
    run = {"average": {"decay": 0.5}, **run}
    return content(data, folder, run=run, **settings)


def exported(folder):
    found = sorted((folder / "run" / "result").rglob("*.safetensors"))
    return {file.name: load_file(file) for file in found}


def check_same(one, two):
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
    expected, found = exported(one), exported(two)
    assert expected.keys() == found.keys()
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        for key, value in tensors.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-5)


def lose_the_second_half(folder):
    """As if the run had been killed after the checkpoint of the second update."""
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000004")
    (folder / "run" / "checkpoints" / "latest").write_text("step-00000002")
    shutil.rmtree(folder / "run" / "result")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file"),
    [("lora", "fsdp2"), pytest.param("full", "fsdp2", marks=pytest.mark.full), ("full", "fsdp2_keep_weights")],
)
def test_weights_that_are_shared_out_train_as_those_of_one_process(data, tmp_path, kind, file):
    one = made(data, tmp_path / "one", kind, accumulation=2)
    assert main(["train", write(tmp_path / "one", one)]) == 0
    path = write(tmp_path / "two", made(data, tmp_path / "two", kind, accumulation=1))
    train_as_two(path, file)
    check_same(tmp_path / "one", tmp_path / "two")
    if file == "fsdp2":
        lose_the_second_half(tmp_path / "two")
        train_as_two(path, file)
        check_same(tmp_path / "one", tmp_path / "two")
    if kind == "lora":
        # One process takes over from two, and holds all weights.
        lose_the_second_half(tmp_path / "two")
        assert main(["train", path, "run.accumulation=2"]) == 0
        check_same(tmp_path / "one", tmp_path / "two")


def asked(**changes):
    """Processes whose launch asks for FSDP2, with some of its settings changed."""
    plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False}
    processes = {"mixed_precision": "no", "distributed_type": DistributedType.MULTI_CPU}
    plugin |= {name: value for name, value in changes.items() if name in plugin}
    processes |= {name: value for name, value in changes.items() if name in processes}
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(**plugin)), **processes)


FUSED = {"fused_backward": True, "clip": None}
DISTILL = {"distill": {"num_inference_steps": 2}, "data": {"cache": "cache", "captions": {}}}


@pytest.fixture
def sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp_version": 1}, "`fsdp_version` is 1; expected 2"),
        ({"cpu_ram_efficient_loading": True}, "`fsdp_cpu_ram_efficient_loading` is on"),
        ({"mixed_precision": "bf16"}, "`mixed_precision` is 'bf16'"),
    ],
)
def test_settings_of_the_launch_that_would_go_wrong_are_refused(sharded, tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sharding(read_config(content("shapes", tmp_path)), asked(**changes))


def test_the_shipped_settings_are_taken(sharded, tmp_path):
    check_sharding(read_config(content("shapes", tmp_path)), asked())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"text_encoder_lora": {"rank": 2}}}, "`train.text_encoder_lora` and"),
        (DISTILL, "`distill`, whose teacher"),
        ({"validation": {"images_every": 2}}, "`validation.images_every`, since one process draws"),
        ({"train": {"lora": None, "weights": ["*"]}, "run": FUSED}, "`run.fused_backward`, which"),
        ({"model": {"compile": True}}, "`model.compile`, whose graphs"),
        ({"optimizer": {"name": "prodigy"}}, "`optimizer.name: prodigy`, whose states have other shapes"),
        ({"optimizer": {"name": "adafactor"}}, "`optimizer.name: adafactor`, whose states have other shapes"),
        ({"optimizer": {"rounding": "kahan"}}, "`optimizer.rounding: kahan`; train float32 weights"),
        ({"model": {"resident": "1GB", "gradient_checkpointing": True}}, "`model.resident` is '1GB', but FSDP places"),
    ],
)
def test_what_does_not_run_with_shared_weights_is_refused(sharded, tmp_path, changes, message):
    made = content("shapes", tmp_path)
    for section, entries in changes.items():
        made[section] = {**made.get(section, {}), **entries}
    config = read_config(made)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_sharding(config, asked())


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_keep_weights"])
def test_the_command_in_a_shipped_file_is_taken(sharded, name):
    comment = " ".join(
        line.strip("# \\") for line in (FILES / f"{name}.yaml").read_text().splitlines() if line[0] == "#"
    )
    recipe, *entries = comment.split(" train ")[1].split()
    assert "optimizer.name=adamw" in entries
    check_sharding(read_config(ROOT / recipe, entries), asked())


def some_without_outlines(data, folder, **changes):
    """A configuration that trains a ControlNet, and data in which two rows have no control image."""
    rows = json.loads(Path(data).read_text())
    for row in rows[1:3]:
        row["controlnet_image"] = None
    (path := Path(data).with_name("some.json")).write_text(json.dumps(rows))
    net = {"kind": "controlnet", "train": True, "sizes": {"num_layers": 1, "num_single_layers": 0}}
    control = {"type": "ControlNetImage", "inputs": {"image": "controlnet_image"}, "modules": {"controlnet": net}}
    return read_config(content(str(path), folder, conditions=[control], **changes))


def test_processes_that_share_weights_need_the_inputs_of_trained_modules(data, sharded, tmp_path):
    config = some_without_outlines(data, tmp_path)
    rows, _ = check_run(config)
    with pytest.raises(ValueError, match="2 samples lack an input.*without `ControlNetImage`"):
        check_sharding(config, asked(), rows)
    check_sharding(config.model_copy(update={"conditions": []}), asked(), rows)


def test_samples_from_which_nothing_is_learnt_are_named(data, tmp_path):
    with pytest.raises(ValueError, match=r"2 samples have no input for `ControlNetImage`, whose modules are all that"):
        check_run(some_without_outlines(data, tmp_path, train={"lora": None}))


def test_deepspeed_is_refused_with_the_file_to_take_instead(tmp_path):
    with pytest.raises(ValueError, match=r"The launch asks for DeepSpeed.*`fsdp2.yaml` in place of ZeRO-3"):
        check_sharding(read_config(content("shapes", tmp_path)), asked(distributed_type=DistributedType.DEEPSPEED))


def test_a_layer_that_the_model_lacks_is_named():
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["LlamaDecoderLayer"])
    with pytest.raises(ValueError, match=r"names \['LlamaDecoderLayer'\], but the model has no such layer"):
        shard(torch.nn.ModuleList([tiny_transformer(0)]), plugin, torch.device("cpu"))


@pytest.mark.parametrize(("train", "part", "warns"), [("lora", 0.5, True), ("lora", 2.0, False), ("full", 0.5, False)])
def test_sharing_out_a_base_that_fits_is_named_as_slow(tmp_path, caplog, monkeypatch, train, part, warns):
    transformer = tiny_transformer(0)
    size = sum(parameter.nbytes for parameter in transformer.parameters())
    monkeypatch.setattr(sharding.logger, "propagate", True, raising=False)
    config = read_config(content("shapes", tmp_path, **{"optimizer": SGD, **KINDS[train]}))
    with caplog.at_level("WARNING"):
        warn_if_needless(config, transformer, int(size / part))
    assert ("sharing it out (FSDP)" in caplog.text) is warns
