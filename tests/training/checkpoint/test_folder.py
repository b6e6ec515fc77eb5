"""Folders of checkpoints: nested states, killed writers, full disks, damaged files."""

import json
import os
import random
import signal
import time

import pytest
import torch

from diffusers_flux_ext.training.checkpoint import CheckpointFolder, StopRequest, folder, pack_state, unpack_state


def files(value: float) -> dict:
    return {"weights": {"a": torch.full((50_000,), value), "b": torch.tensor(value)}}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


@pytest.mark.parametrize(
    "state",
    [
        {"state": {0: {"step": torch.tensor(3.0), "none": None, "rows": [1, (2.5, "x")], "flag": True}}, "lr": 0.1},
        {"a": {"b": torch.ones(2)}, "a.b": torch.zeros(2)},
        {"nan": float("nan"), "inf": -float("inf"), "int": torch.arange(4), "bool": torch.tensor([True])},
    ],
)
def test_states_come_back_as_they_were(state):
    tensors = {}
    tree = json.loads(json.dumps(pack_state(state, tensors, "0")))
    assert same(unpack_state(tree, tensors), state)


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"cannot hold the object at `0\.state\.x`"):
        pack_state({"state": {"x": object()}}, {}, "0")
    with pytest.raises(TypeError, match="cannot hold the key"):
        pack_state({(1, 2): 1}, {}, "0")
    for damaged in (5, {"tensor": "x"}, {"what": 1}, {"tensor": "x", "value": 1}):
        with pytest.raises(ValueError, match="damaged"):
            unpack_state(damaged, {})


def test_the_newest_ones_are_kept(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "run", keep=2)
    assert checkpoints.load() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"x": step}, files(step))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["latest", "step-00000010", "step-00000015"]
    newest = checkpoints.load()
    assert (newest.step, newest.state) == (15, {"x": 15})
    assert same(newest.files, files(15))
    assert checkpoints.load(tmp_path / "run" / "step-00000010").step == 10
    checkpoints.save(15, {"x": "again"}, files(1))
    assert checkpoints.load().state == {"x": "again"}


def newest(path, step):
    return path / f"step-{step:08d}" if step else None


def test_a_killed_writer_leaves_a_complete_checkpoint(tmp_path):
    """A process writes one after the other and is killed at random moments; what is read is always whole."""
    rng, checkpoints, reached = random.Random(0), CheckpointFolder(tmp_path, keep=2), 0
    for _ in range(15):
        start = reached
        child = os.fork()
        if not child:
            for step in range(start + 1, start + 10_000):
                CheckpointFolder(tmp_path, keep=2).save(step, {"value": step}, files(step))
            os._exit(0)
        # Anything may be happening from the first write on.
        deadline = time.monotonic() + 30
        while checkpoints.latest() == newest(tmp_path, reached) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoints.load()
        if found is not None:
            assert found.step >= reached
            assert found.state == {"value": found.step}
            assert same(found.files, files(found.step))
            reached = found.step
    assert reached >= 15
    checkpoints.save(reached + 1, {}, files(0))
    assert len(list(tmp_path.iterdir())) <= 3


def test_a_full_disk_leaves_the_last_one(tmp_path, monkeypatch):
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save(1, {}, files(1))
    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
        with pytest.raises(OSError, match="needs 16 MiB, but 1 MiB are free. Nothing was written"):
            checkpoints.save(2, {}, files(2))
    with monkeypatch.context() as patch:

        def full(tensors, path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        patch.setattr(folder, "save_file", full)
        with pytest.raises(
            OSError, match="step-00000002` could not be written.*No space left.*Earlier ones are intact"
        ):
            checkpoints.save(2, {}, files(2))
    assert checkpoints.load().step == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_ones_are_named(tmp_path):
    checkpoints = CheckpointFolder(tmp_path)
    path = checkpoints.save(1, {}, files(1))
    (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state.json` is damaged"):
        checkpoints.load()
    (path / "state.json").write_text('{"format": 99, "step": 1, "files": []}')
    with pytest.raises(ValueError, match="has the format 99"):
        checkpoints.load()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoints.load(tmp_path / "none")
    with pytest.raises(ValueError, match="`keep` is 0"):
        CheckpointFolder(tmp_path, keep=0)


def test_signals_ask_to_stop_once():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt, match="second signal"):
            signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGTERM) is before
