"""Streaming of blocks from disk: order, memory, files, errors."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_flux_ext import (
    disk_streaming_stats,
    release_disk_buffers,
    stop_disk_streaming,
    stream_from_disk,
)
from diffusers_flux_ext.checkpoints.stored import StoredTensor, read_layout
from diffusers_flux_ext.offload.disk.files import FileReader, plan_pieces
from diffusers_flux_ext.offload.disk.stream import DiskStream
from diffusers_flux_ext.offload.disk.weights import StreamedBlock, choose_kept
from tests.fixtures.towers import Tower, saved_tower


# Two Linears, with the norm and a bias between them in the file, which are read over.
WEIGHT_BYTES = 2 * 8 * 16 * 4
BLOCK_BYTES = WEIGHT_BYTES + (8 + 8 + 16) * 4
GIB = 2**30


def stream_of(module):
    """The stream of a module."""
    return module._flux_ext_disk_stream


def held_bytes(stream):
    """Host memory that a stream on the CPU holds for blocks."""
    slots = [*stream._free, *(pending.slot for pending in stream._pending.values()), stream._slot]
    kept = sum(block.kept.nbytes for block in stream.blocks if block.kept is not None)
    return kept + sum(slot.buffer.nbytes for slot in slots if slot is not None)


@pytest.fixture
def reads(monkeypatch):
    """The positions in the file that were read, in order."""
    seen = []
    read = FileReader.read

    def spy(self, pieces, buffer):
        seen.append(pieces[0].start)
        return read(self, pieces, buffer)

    monkeypatch.setattr(FileReader, "read", spy)
    return seen


@pytest.fixture
def installs(monkeypatch):
    """Whenever a block was put in place: its index, and what had been ordered to follow."""
    seen = []
    install = DiskStream._install

    def spy(self, index, data, slot):
        seen.append((index, sorted(self._pending)))
        install(self, index, data, slot)

    monkeypatch.setattr(DiskStream, "_install", spy)
    return seen


def run(module, x, times=1):
    """Outputs of some calls."""
    with torch.no_grad():
        return [module(x) for _ in range(times)]


@pytest.mark.parametrize("read_ahead", [0, 1, 2, 9])
def test_blocks_are_read_in_order_and_ahead(tmp_path, reads, installs, read_ahead):
    tower, path, x, expected = saved_tower(tmp_path)
    stream_from_disk(tower, path, read_ahead=read_ahead)
    reads.clear()
    assert all(torch.equal(output, expected) for output in run(tower, x, 3))
    starts = [block.pieces[0].start for block in stream_of(tower).blocks]
    ahead = min(read_ahead, 4)
    assert installs == [(i % 5, sorted((i + 1 + k) % 5 for k in range(ahead))) for i in range(15)]
    release_disk_buffers(tower)
    assert reads[:15] == starts * 3
    assert held_bytes(stream_of(tower)) == 0


def test_only_blocks_in_use_are_in_memory(tmp_path):
    tower, path, x, _ = saved_tower(tmp_path)
    stream_from_disk(tower, path)
    stream = stream_of(tower)
    for index in range(5):
        run(tower.blocks[index], x)
        present = [i for i, block in enumerate(tower.blocks) if not block.up.weight.isnan().any()]
        assert present == [index]
        assert held_bytes(stream) == 2 * BLOCK_BYTES
    idle = tower.blocks[0].up.weight
    assert (idle.shape, idle.dtype, idle.untyped_storage().nbytes()) == ((16, 8), torch.float32, 4)
    with pytest.raises(RuntimeError, match="single memory location"):
        idle += 1
    names = dict(tower.named_parameters())
    assert "blocks.0.up.bias" in names
    assert "blocks.0.up.weight" not in names


@pytest.mark.parametrize("kept", [0, 1, 2, 5])
def test_a_budget_keeps_blocks_that_are_never_read_again(tmp_path, reads, kept):
    tower, path, x, expected = saved_tower(tmp_path)
    budget = (kept + (2 if kept < 5 else 0)) * BLOCK_BYTES
    stream_from_disk(tower, path, ram_budget_gib=budget / GIB)
    stream = stream_of(tower)
    assert sum(block.keep for block in stream.blocks) == kept
    reads.clear()
    for _ in range(3):
        assert torch.equal(run(tower, x)[0], expected)
        assert held_bytes(stream) <= budget
    release_disk_buffers(tower)
    # One block may have been read for a call that did not come.
    assert 0 <= len(reads) - (kept + 3 * (5 - kept)) <= 1


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_blocks_pass_through_two_staging_buffers(tmp_path, monkeypatch, reads, kept):
    monkeypatch.setattr(DiskStream, "_staged", True)
    tower, path, x, expected = saved_tower(tmp_path)
    stream_from_disk(tower, path)
    stream = stream_of(tower)
    choose_kept(stream.blocks, kept * BLOCK_BYTES)
    outside = len(reads)
    assert all(torch.equal(output, expected) for output in run(tower, x, 3))
    staging = stream._loader.reader.buffers
    assert [each.nbytes for each in staging] == [BLOCK_BYTES if kept < 5 else 0] * 2
    assert held_bytes(stream) == (2 + kept) * BLOCK_BYTES
    release_disk_buffers(tower)
    # One block may be on its way to the device for a call that did not come, and one to host memory.
    assert 0 <= len(reads) - outside - (kept + 3 * (5 - kept)) <= 2


def test_kept_blocks_are_spread_and_fit():
    sizes = [4] * 5 + [2] * 10
    for room in range(0, 45):
        blocks = [StreamedBlock(str(i), [], [], size) for i, size in enumerate(sizes)]
        choose_kept(blocks, room)
        taken = sum(block.size for block in blocks if block.keep)
        assert taken <= room
        assert taken > min(room, sum(sizes)) - 4
    blocks = [StreamedBlock(str(i), [], [], 1) for i in range(6)]
    choose_kept(blocks, 3)
    assert [block.keep for block in blocks] == [False, True] * 3


def test_a_budget_below_the_buffers_is_refused(tmp_path):
    tower, path, _, _ = saved_tower(tmp_path)
    with pytest.raises(ValueError, match=r"ram_budget_gib=1e-09.*0\.000 GiB.*read_ahead"):
        stream_from_disk(tower, path, ram_budget_gib=1e-9)
    with pytest.raises(ValueError, match="`read_ahead` is -1"):
        stream_from_disk(tower, path, read_ahead=-1)
    assert isinstance(tower.blocks[0].up.weight, torch.nn.Parameter)


def test_another_order_of_blocks_is_learned(tmp_path):
    tower, path, x, expected = saved_tower(tmp_path, depth=3, twins=True)
    stream_from_disk(tower, path)
    assert torch.equal(run(tower, x, 2)[1], expected)
    before = disk_streaming_stats(tower).blocks_unused
    run(tower, x, 3)
    assert before > 0
    assert disk_streaming_stats(tower).blocks_unused == before


def test_stopping_gives_ordinary_weights_back(tmp_path):
    tower, _, x, expected = saved_tower(tmp_path)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    forwards = [module.forward for module in tower.modules()]
    stream_from_disk(tower, offload_dir=tmp_path / "offload")
    run(tower, x)
    stop_disk_streaming(tower)
    after = tower.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(tower(x), expected)
    assert [module.forward for module in tower.modules()] == forwards
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in tower.parameters())
    assert not {"_apply", "_flux_ext_disk_stream"} & tower.__dict__.keys()
    with pytest.raises(ValueError, match="not streamed from disk"):
        stop_disk_streaming(tower)


def test_some_blocks_may_stay(tmp_path):
    tower, path, x, expected = saved_tower(tmp_path, twins=True)
    stream_from_disk(tower, path, blocks=["twins", "blocks.1"])
    assert [block.name for block in stream_of(tower).blocks] == ["blocks.1", *(f"twins.{i}" for i in range(5))]
    assert "blocks.0.up.weight" in dict(tower.named_parameters())
    assert torch.equal(run(tower, x)[0], expected)
    stop_disk_streaming(tower)
    with pytest.raises(ValueError, match="`wings`.*`blocks`, `twins`"):
        stream_from_disk(tower, path, blocks=["wings"])
    with pytest.raises(ValueError, match="names nothing"):
        stream_from_disk(tower, path, blocks=[])
    with pytest.raises(ValueError, match="has no `nn.ModuleList`"):
        stream_from_disk(tower.inward, path)


def test_a_failing_read_or_call_leaves_streaming_usable(tmp_path, monkeypatch):
    tower, path, x, expected = saved_tower(tmp_path)
    stream_from_disk(tower, path)
    down = tower.blocks[2].down
    handle = down.register_forward_pre_hook(lambda *args: (_ for _ in ()).throw(KeyError("stop")))
    with pytest.raises(KeyError, match="stop"):
        run(tower, x)
    handle.remove()
    assert torch.equal(run(tower, x)[0], expected)
    os.utime(path, ns=(1, 1))
    release_disk_buffers(tower)
    for action in (lambda: run(tower, x), lambda: stop_disk_streaming(tower)):
        with pytest.raises(RuntimeError, match="was changed while"):
            action()
    monkeypatch.setattr(FileReader, "_stat", lambda self, path: self._stats[path])
    assert torch.equal(run(tower, x)[0], expected)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    release_disk_buffers(tower)
    with pytest.raises(RuntimeError, match="was cut off while streaming"):
        run(tower, x, 2)


def test_gradients_are_refused_and_inference_mode_is_not(tmp_path):
    tower, path, x, expected = saved_tower(tmp_path)
    stream_from_disk(tower, path, compute_dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"`blocks.0`.*torch.no_grad"):
        tower(x.double())
    with torch.inference_mode():
        first = tower(x.double())
    assert torch.equal(run(tower, x.double())[0], first)
    torch.testing.assert_close(first.float(), expected, rtol=0, atol=1e-4)


def test_streaming_twice_is_refused(tmp_path):
    tower, path, _, _ = saved_tower(tmp_path)
    stream_from_disk(tower, path)
    with pytest.raises(ValueError, match="is streamed already"):
        stream_from_disk(tower, path)


def test_written_files_are_named_by_their_content(tmp_path):
    tower, _, x, expected = saved_tower(tmp_path)
    folder = tmp_path / "offload"
    with pytest.raises(ValueError, match="`offload_dir` is missing"):
        stream_from_disk(tower)
    for _ in range(2):
        stream_from_disk(tower, offload_dir=folder)
        assert torch.equal(run(tower, x)[0], expected)
        stop_disk_streaming(tower)
    (file,) = folder.iterdir()
    tower.blocks[0].up.weight.data[0, 0] += 1
    changed = tower(x)
    stream_from_disk(tower, offload_dir=folder)
    assert torch.equal(run(tower, x)[0], changed)
    assert not torch.equal(changed, expected)
    assert len(list(folder.iterdir())) == 2
    stop_disk_streaming(tower)
    tower.blocks[0].up.weight.data[0, 0] -= 1
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold what its name says"):
        stream_from_disk(tower_with(load_file(tmp_path / "tower.safetensors")), offload_dir=folder)


def tower_with(weights):
    """A tower with these weights."""
    tower = Tower().requires_grad_(False)
    tower.load_state_dict(weights)
    return tower


def test_a_file_that_does_not_read_back_is_not_left(tmp_path, monkeypatch):
    tower, _, x, expected = saved_tower(tmp_path)
    monkeypatch.setattr("diffusers_flux_ext.offload.disk.store._digest", lambda path: b"")
    with pytest.raises(OSError, match="does not read back"):
        stream_from_disk(tower, offload_dir=tmp_path / "offload")
    assert not list((tmp_path / "offload").iterdir())
    assert torch.equal(tower(x), expected)


def test_8_bit_storage_rounds_the_linears_once(tmp_path):
    tower, path, x, _ = saved_tower(tmp_path)
    rounded = tower_with(load_file(path)).bfloat16()
    for block in rounded.blocks:
        for layer in (block.up, block.down):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn).bfloat16()
    expected = rounded(x.bfloat16())
    weights = {key: value.bfloat16() for key, value in load_file(path).items()}
    save_file(weights, tmp_path / "bf16.safetensors")
    meta = Tower().to("meta")
    with pytest.raises(ValueError, match="`offload_dir` is missing"):
        stream_from_disk(meta, tmp_path / "bf16.safetensors", storage_dtype=torch.float8_e4m3fn)
    stream_from_disk(
        meta, tmp_path / "bf16.safetensors", storage_dtype=torch.float8_e4m3fn, offload_dir=tmp_path / "offload"
    )
    assert torch.equal(run(meta, x.bfloat16(), 2)[1], expected)
    assert max(block.size for block in stream_of(meta).blocks) == WEIGHT_BYTES // 4
    # A file of 8 bits is streamed as it is, and computes in bfloat16.
    stored = {key: value.clone() for key, value in meta.state_dict().items()}
    assert stored["blocks.0.up.weight"].dtype == torch.float8_e4m3fn
    save_file(stored, tmp_path / "fp8.safetensors")
    again = Tower().to("meta")
    stream_from_disk(again, tmp_path / "fp8.safetensors")
    assert torch.equal(run(again, x.bfloat16())[0], expected)


@pytest.mark.parametrize(
    "change, error",
    [
        (lambda w: w.pop("blocks.3.up.weight"), "missing: `blocks.3.up.weight`"),
        (lambda w: w.pop("inward.weight"), "missing: `inward.weight`"),
        (lambda w: w.update({"blocks.9.up.weight": torch.ones(1)}), "surplus: `blocks.9.up.weight`"),
        (lambda w: w.update({"blocks.1.up.weight": torch.ones(8, 16)}), "of another shape: `blocks.1.up.weight`"),
    ],
)
def test_files_of_other_modules_are_refused(tmp_path, change, error):
    tower, path, x, expected = saved_tower(tmp_path)
    weights = dict(load_file(path))
    change(weights)
    save_file(weights, path)
    with pytest.raises(ValueError, match=error):
        stream_from_disk(tower, path)
    assert torch.equal(tower(x), expected)


def test_broken_files_are_refused(tmp_path):
    tower, path, _, _ = saved_tower(tmp_path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    broken = {
        "its header would end at": (2**40).to_bytes(8, "little") + content[8:],
        "has 0 bytes": b"",
        "not an intact safetensors file: .*not fully covered": content[:-1],
        "not an intact safetensors file: .*JSON": content[:8] + b"x" * length + content[8 + length :],
        "not an intact safetensors file: .*data type": content.replace(b'"F32"', b'"C64"', 1),
        "not an intact safetensors file": content.replace(b"[16,8]", b"[16,9]", 1),
    }
    for error, data in broken.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=error):
            stream_from_disk(tower, path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        stream_from_disk(tower, tmp_path / "nothing")
    with pytest.raises(ValueError, match="on the meta device.*`source`"):
        stream_from_disk(Tower().to("meta"), offload_dir=tmp_path)


def test_folders_need_one_index_that_agrees(tmp_path):
    tower, path, x, expected = saved_tower(tmp_path)
    weights = load_file(path)
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, folder / file)
    with pytest.raises(ValueError, match="one safetensors file, or one index"):
        stream_from_disk(tower, folder)
    index = folder / "model.safetensors.index.json"
    where = {key: file for file, keys in shards.items() for key in keys}
    index.write_text(json.dumps({"weight_map": {**where, names[0]: "b.safetensors"}}))
    with pytest.raises(ValueError, match="disagrees with the files"):
        stream_from_disk(tower, folder)
    index.write_text(json.dumps({"weight_map": {**where, names[0]: "c.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="`c.safetensors`, which is missing"):
        stream_from_disk(tower, folder)
    index.write_text(json.dumps({"weight_map": where}))
    stream_from_disk(tower, folder)
    assert torch.equal(run(tower, x, 2)[1], expected)


def test_neighbours_are_read_together_and_views_are_aligned(tmp_path):
    path = tmp_path / "x.safetensors"
    places = [("a", torch.int8, 10, 13), ("b", torch.float32, 13, 17), ("c", torch.float32, 17, 2**22 + 17)]
    places += [("d", torch.float32, 2**24 + 1, 2**24 + 5), ("e", torch.float32, 2**24 + 9, 2**24 + 13)]
    tensors = [
        StoredTensor(name, path, dtype, ((stop - start) // dtype.itemsize,), start, stop)
        for name, dtype, start, stop in places
    ]
    pieces, positions, size = plan_pieces(tensors)
    # "b" cannot be a view at an odd byte, so it starts a read of its own; "d" lies too far away.
    assert [(piece.start, piece.stop) for piece in pieces] == [(10, 13), (13, 2**22 + 17), (2**24 + 1, 2**24 + 13)]
    assert all(positions[tensor.name] % tensor.dtype.itemsize == 0 for tensor in tensors)
    assert size == pieces[-1].position + 12
    assert read_layout(saved_tower(tmp_path)[1])["scale"].shape == ()
