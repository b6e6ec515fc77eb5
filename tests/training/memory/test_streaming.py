"""Blocks streamed in training: bits as without, bytes within the budget, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from diffusers_flux_ext.offload.disk import loader, streaming
from diffusers_flux_ext.offload.disk.plan import block_bytes
from diffusers_flux_ext.offload.disk.stream import DiskStream, stream_of
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.config.reading import ConfigurationError
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.frozen import store_frozen
from diffusers_flux_ext.training.memory import MemoryPlan, Needs, Setting
from diffusers_flux_ext.training.memory.needs import streamed_bytes
from diffusers_flux_ext.training.run.build import build_run
from diffusers_flux_ext.training.run.peaks import StagePeaks
from diffusers_flux_ext.training.run.report import dry_run
from diffusers_flux_ext.training.run.sharding import check_sharding
from diffusers_flux_ext.training.streaming import describe_streaming, stream_blocks
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora
from tests.training.samples import bare, batch, encode


CPU = torch.device("cpu")
CONDITIONS = ("entities", "controlnet", "ip-adapter")
SIZES = block_bytes(tiny_transformer(0))


def updates(
    storage=None, kind="lora", every=0, resident=None, folder=None, offload=False, steps=3, names=(), preserved=None
):
    """Losses and gradients of some updates of a LoRA, with a share of blocks that stays, and the transformer."""
    transformer = tiny_transformer(0).requires_grad_(False)
    if storage is not None:
        store_frozen(transformer, storage)
    lora = add_lora(transformer, LoRAOptions("attention+mlp", rank=2, kind=kind)).named_parameters().values()
    checkpoint_blocks(transformer, every, offload)
    if resident is not None:
        stream_blocks(transformer, CPU, int(resident * sum(block_bytes(transformer).values())), folder)
    optimizer, found = torch.optim.AdamW(lora, lr=1e-2), []
    encoded = encode(*names) if names else []
    with FluxTraining(transformer, [bare(name) for name in names]) as training:
        training.train()
        for step in range(steps):
            losses = training(batch(encoded, 2, seed=step, preserved=preserved))
            losses.sum().backward()
            found += [losses.detach(), *(parameter.grad for parameter in lora)]
            optimizer.step()
            optimizer.zero_grad()
    return found, transformer


@pytest.mark.parametrize(
    ("storage", "kind", "names"),
    [(None, "lora", ()), (None, "dora", ()), ("fp8", "lora", ()), ("fp8", "lokr", ()), ("fp8", "lora", CONDITIONS)],
)
def test_updates_are_those_of_a_transformer_in_memory(storage, kind, names, tmp_path):
    # A sample whose target is the base's own prediction runs the blocks once more, without gradients.
    given = {"names": names, "preserved": torch.tensor([False, True]) if kind == "lora" else None}
    expected, _ = updates(storage, kind, **given)
    for options in (
        {"every": 1, "offload": True},
        {"every": 1, "resident": 0},
        {"every": 2, "resident": 0.5, "offload": True},
        {"every": 1, "resident": 0.5, "folder": tmp_path / "blocks"},
    ):
        found, transformer = updates(storage, kind, **given, **options)
        assert (stream_of(transformer) is not None) == ("resident" in options)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), options


class Watch:
    """Notes how many bytes of streamed blocks are there at once, and which blocks were asked for."""

    def __init__(self, monkeypatch):
        self.buffers, self.most, self.asked, self.loaded = 0, 0, [], []
        made, freed = loader.Slot.__init__, DiskStream.release
        put, load = DiskStream._install, DiskStream._load
        watch = self

        def init(slot, size, device):
            made(slot, size, device)
            watch.buffers += slot.buffer.nbytes
            watch.most = max(watch.most, watch.buffers)

        def release(stream):
            watch.buffers = 0
            freed(stream)

        def install(stream, index, data, slot):
            put(stream, index, data, slot)
            watch.asked.append(index)
            weights = [weight for block in stream.blocks for weight in block.weights]
            real = [w for w in weights if w.owner.__dict__[w.attribute].untyped_storage().nbytes() >= w.numel]
            # All others are placeholders, and these lie in the buffer.
            assert {id(w) for w in real} == {id(w) for w in stream.blocks[index].weights}
            start, end = slot.buffer.data_ptr(), slot.buffer.data_ptr() + slot.buffer.nbytes
            assert all(start <= w.owner.__dict__[w.attribute].data_ptr() < end for w in real)

        def read(stream, index, slot):
            watch.loaded.append(index)
            return load(stream, index, slot)

        monkeypatch.setattr(loader.Slot, "__init__", init)
        monkeypatch.setattr(DiskStream, "release", release)
        monkeypatch.setattr(DiskStream, "_install", install)
        monkeypatch.setattr(DiskStream, "_load", read)


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("from_disk", [False, True])
def test_no_more_than_the_budget_and_two_blocks_are_there(share, from_disk, tmp_path, monkeypatch):
    watch, resident = Watch(monkeypatch), int(share * sum(SIZES.values()))
    _, transformer = updates(every=1, resident=share, folder=tmp_path if from_disk else None, steps=2)
    stream = stream_of(transformer)
    sizes = [block.size for block in stream.blocks]
    stays = sum(size for name, size in SIZES.items() if name not in stream.names)
    assert resident - max(SIZES.values()) < stays <= resident
    assert 0 < watch.most <= 2 * max(sizes)
    matrices = [p for name, p in transformer.named_parameters() if "blocks." in name and "lora_" not in name]
    assert sum(p.nbytes for p in matrices if p.ndim > 1) == stays
    # Forwards and backwards, where the block of the turn is still there; and the next one was always on its way.
    there = list(range(len(sizes)))
    step = [*there, *there[-2::-1]]
    assert watch.asked == [*step, *step[1:]]
    assert watch.loaded[: len(watch.asked)] == watch.asked
    assert len(watch.loaded) <= len(watch.asked) + 1
    if not from_disk:
        setting = Setting(checkpointing=1, resident=resident)
        predicted = streamed_bytes(tiny_transformer(0), setting, torch.float32)
        assert predicted == sizes
        first, last = predicted[0], predicted[-1]
        moved = 2 * (2 * sum(predicted) - first - last)
        # The first block comes once, and after the last step the second one was copied ahead.
        assert stream.stats.bytes_copied == moved + first + (predicted[1] if len(sizes) > 1 else 0)


def test_streamed_blocks_are_still_a_model(tmp_path):
    plain = tiny_transformer(0)
    _, transformer = updates(every=1, resident=0, steps=1)
    state = transformer.state_dict()
    for name, value in plain.state_dict().items():
        key = name if name in state else name.replace(".weight", ".base_layer.weight").replace(
            ".bias", ".base_layer.bias"
        )  # fmt: skip
        assert torch.equal(state[key], value), name
    assert "streamed from host memory" in describe_streaming(stream_of(transformer), 0)
    streaming.stop_disk_streaming(transformer)
    assert stream_of(transformer) is None
    assert sum(p.nbytes for n, p in transformer.named_parameters() if p.ndim > 1 and "base_layer" in n) > 0


def test_inputs_that_wait_are_those_of_blocks_alone(monkeypatch):
    from diffusers_flux_ext.training import checkpointing

    taken, plain = [], checkpointing.save_on_cpu

    class Counted(plain):
        def __init__(self, pin_memory):
            super().__init__(pin_memory=pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: (taken.append(tuple(tensor.shape)), pack(tensor))[1]
            assert not pin_memory

    monkeypatch.setattr(checkpointing, "save_on_cpu", Counted)
    _, transformer = updates(every=1, offload=True, steps=1)
    width = transformer.inner_dim
    assert taken
    # Hidden states, those of the text and the embedding of the time; nothing that is computed inside of a block.
    assert {shape[-1] for shape in taken} == {width}
    assert len(taken) <= 3 * (len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks))


def test_gradients_without_blocks_that_run_again_are_refused():
    with pytest.raises(RuntimeError, match=r"is streamed, so its weights are gone.*checkpoint_blocks"):
        updates(every=0, resident=0, steps=1)
    transformer = tiny_transformer(0).requires_grad_(True)
    with pytest.raises(ValueError, match="must be frozen, but `transformer_blocks.0"):
        stream_blocks(transformer, CPU, 0)
    assert stream_blocks(transformer.requires_grad_(False), CPU, sum(SIZES.values())) is None
    stream_blocks(transformer, CPU, 0)
    with pytest.raises(ValueError, match="is streamed already. Call `stop_disk_streaming`"):
        stream_blocks(transformer, CPU, 0)
    assert "none is streamed" in describe_streaming(None, 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 2))


def content(data, folder, train=None, **changes):
    return {
        "output": str(folder),
        "model": {"path": "tiny", "device": "cpu", "gradient_checkpointing": True, **changes.pop("model", {})},
        "data": {"sources": [{"path": data}], "sizes": {"listed": {"listed": [[64, 64]]}}, "text_length": 16},
        "train": train or {"lora": {"rank": 2}},
        "run": {"updates": 2, "logs": ["jsonl"], "save_every": 1},
        **changes,
    }


def weights(run):
    return {name: parameter.detach() for name, parameter in run.trained.named_parameters().items()}


def test_a_run_streams_and_goes_on_where_another_one_stopped(data, tmp_path):
    plain = build_run(read_config(content(data, tmp_path / "plain")))
    plain()
    given = content(data, tmp_path / "streamed", model={"resident": "0GB", "offload_activations": True})
    run = build_run(read_config(given))
    count = len(stream_of(run.training.transformer).blocks)
    assert f"Streamed: {count} blocks" in dry_run(read_config(given))
    assert "blocks are streamed from host memory" in run.report
    # As if the system had asked to stop after the first update.
    run.trainer._update(0)
    run.trainer.step = 1
    run.trainer.save()
    folder = {"resident": "0GB", "stream_folder": str(tmp_path / "blocks")}
    other = build_run(read_config(content(data, tmp_path / "streamed", model=folder)))
    assert other.trainer.step == 1
    assert "blocks are streamed from disk" in other.report
    other()
    expected = weights(plain)
    assert all(torch.equal(value, expected[name]) for name, value in weights(other).items())


def test_a_report_has_the_peaks_of_both_stages(data, tmp_path, capsys):
    from diffusers_flux_ext.cli.main import main

    path = tmp_path / "train.yaml"
    path.write_text(json.dumps(content(data, tmp_path / "run")))
    assert main(["train", str(path), "--memory", "2GB"]) == 0
    shown = capsys.readouterr().out
    assert "Peak while training: not measured on cpu, 0.0 GB predicted" in shown
    written = json.loads((tmp_path / "run" / "logs" / "memory.json").read_text())
    assert written["training"]["measured"] is None
    assert written["training"]["predicted"] > 0
    assert written["encoding"]["predicted"] > 0


def test_measured_peaks_stand_beside_predicted_ones(tmp_path, monkeypatch):
    """With a counter in place of a card's."""
    counted = iter([3 * 10**9, 2 * 10**9])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(counted))
    plan, path = MemoryPlan(8 * 10**9, Setting(), Needs(10**9, 0, 0, 10**8, 0), 4 * 10**9), tmp_path / "memory.json"
    encoded, trained = (StagePeaks(torch.device("cuda"), plan) for _ in range(2))
    with encoded.stage("encoding"):
        pass
    assert "Peak while training: not run, 1.1 GB predicted" in encoded.describe()
    encoded.write(path)
    with trained.stage("training"):
        pass
    assert "Peak while training: 2.0 GB measured, 1.1 GB predicted" in trained.describe()
    trained.write(path)
    # What another command measured stays.
    assert json.loads(path.read_text()) == {
        "encoding": {"predicted": 4 * 10**9, "measured": 3 * 10**9},
        "training": {"predicted": 11 * 10**8, "measured": 2 * 10**9},
    }
    StagePeaks(CPU, None).write(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"resident": "1GB", "gradient_checkpointing": False}}, "got `resident` without `gradient_check"),
        ({"model": {"offload_activations": True, "gradient_checkpointing": False}}, "got `offload_activations` with"),
        ({"model": {"resident": "1GB", "storage": "nf4"}}, "whose tables do not move"),
        ({"model": {"stream_folder": "blocks"}}, "got `stream_folder` without `resident`"),
        ({"model": {"resident": "all"}}, "expected an amount of memory"),
        ({"model": {"resident": "1GB"}, "train": {"weights": ["*"]}}, "blocks that are streamed must be frozen"),
        ({"model": {"resident": "1GB"}, "train": {"lora": {}, "memory": "8GB"}}, "`model.resident`, which it chooses"),
        (
            {"model": {"offload_activations": True}, "train": {"lora": {}, "memory": "8GB"}},
            "`model.offload_activations`, which it chooses",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(data, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        read_config(content(data, tmp_path, **changes))


def test_streamed_weights_are_not_shared_out(data, tmp_path):
    config = read_config(content(data, tmp_path, model={"resident": "0GB"}))
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        with pytest.raises(ValueError, match=f"`model.resident` is '0GB', but {kind.value} places"):
            check_sharding(config, SimpleNamespace(distributed_type=kind))
    check_sharding(config, SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
