"""Files and folders are written whole or not at all, with the usual rights, and replace nothing unasked."""

import errno
import os
import resource
import shutil
import stat

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_flux_ext.checkpoints.writing import save_tensors, written_at_once
from diffusers_flux_ext.cli.images import save_image
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import atomic_path, save_checkpoint
from tests.checkpoints.test_broken_files import script


TENSORS = {"a": torch.arange(4096.0)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk():
    """No file may have more than 4 KiB, so that writing fails in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "tensors": lambda path: save_tensors(TENSORS, path),
    "checkpoint": lambda path: save_checkpoint(path, 1, TENSORS),
    "image": lambda path: save_image(Image.effect_noise((200, 200), 50), path.with_suffix(".png")),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_names_the_target_and_leaves_what_was_there(tmp_path, write, small_disk):
    path = tmp_path / "result.safetensors"
    for name in ("result.safetensors", "result.png"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match=r"`.*result\.\w+` could not be written"):
        write(path)
    assert names(tmp_path) == ["result.png", "result.safetensors"]
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_results_have_the_rights_of_new_files(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        save_tensors(TENSORS, tmp_path / "a.safetensors")
        with written_at_once(tmp_path / "b") as temporary:
            temporary.mkdir()
            save_file(TENSORS, temporary / "c.safetensors")
    finally:
        os.umask(before)
    rights = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "b", "b/c.safetensors")
    }
    assert rights == {"a.safetensors": file, "b": folder, "b/c.safetensors": file}


def test_a_planted_link_at_the_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim.png"
    victim.write_text("precious")
    # The name that earlier versions used.
    (tmp_path / f".shot.{os.getpid()}.png").symlink_to(victim)
    with written_at_once(tmp_path / "shot.png") as temporary:
        assert temporary.parent.parent == tmp_path
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700
        temporary.write_text("new")
    save_image(Image.new("RGB", (4, 4)), tmp_path / "shot.png")
    assert victim.read_text() == "precious"


def test_a_link_stays_a_link(tmp_path):
    save_tensors(TENSORS, tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    save_tensors({"b": torch.zeros(1)}, tmp_path / "link.safetensors")
    assert (tmp_path / "link.safetensors").is_symlink()
    assert list(load_file(tmp_path / "real.safetensors")) == ["b"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_pipes_devices_and_folders_are_never_replaced(tmp_path, overwrite):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for target in ("pipe", "folder", "/dev/null"):
        with pytest.raises(ValueError, match="exists already and is a"):
            save_tensors(TENSORS, tmp_path / target, overwrite=overwrite)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["folder", "pipe"]


def test_an_existing_file_is_replaced_only_if_that_is_asked_for(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(TENSORS, path)
    with pytest.raises(ValueError, match="exists already.*overwrite"):
        save_tensors({"b": torch.zeros(1)}, path, overwrite=False)
    assert list(load_file(path)) == ["a"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_tensors(TENSORS, tmp_path / "no" / "a.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_tensors(TENSORS, tmp_path / "file" / "a.safetensors")


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", kwargs["dir"])

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OSError, match="a.safetensors` could not be written: Permission denied"):
        save_tensors(TENSORS, tmp_path / "a.safetensors")


def _write_half(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_an_error_of_the_caller_passes_and_leaves_nothing(tmp_path):
    for error in (KeyError("x"), FileNotFoundError(2, "missing", "source.bin")):
        with pytest.raises(type(error)) as caught:
            _write_half(tmp_path / "deep" / "a", error)
        assert caught.value is error
    assert names(tmp_path / "deep") == []


def test_a_conversion_asks_before_it_replaces_a_file(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    weights = tiny_transformer(0).state_dict()
    save_file(weights, path)
    before = path.read_bytes()
    convert = script("convert_transformer").main
    assert convert([str(path), str(path)]) == 1
    assert "x.safetensors` exists already" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert convert([str(path), str(path), "--to", "bfl", "--overwrite"]) == 0
    assert "img_in.weight" in load_file(path)
    with pytest.raises(SystemExit):
        convert([str(path), str(tmp_path / "folder"), "--overwrite"])


def test_an_interruption_while_the_temporary_folder_is_removed_leaves_none(tmp_path, monkeypatch):
    remove, calls = shutil.rmtree, []

    def interrupted(folder, **options):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), written_at_once(tmp_path / "file") as path:
        path.write_text("whole")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
