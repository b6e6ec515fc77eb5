"""Writing files and folders whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


@contextmanager
def written_at_once(target: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside a target, which replaces the target when the block ends without an error.

    The temporary path cannot be guessed or linked to. The result has the permissions of any new file. A link at the
    target stays a link, and what it points to is replaced.

    Args:
        target (`str` or `os.PathLike`):
            The file or folder to write; its folder must exist.
        overwrite (`bool`, *optional*, defaults to `True`):
            Whether an existing file may be replaced. Folders, devices and pipes never are.

    Yields:
        `Path`: where to write to; it has the target's name and does not exist.

    Raises:
        ValueError: If there is something at the target that may not be replaced.
        OSError: If the target cannot be written, for example because the disk is full.
    """
    check_target(target, overwrite)
    final = Path(os.path.realpath(target))
    with _reported(target):
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name[:50]}.", suffix=".tmp", dir=final.parent))
    try:
        temporary = folder / final.name
        with _reported(target, folder):
            yield temporary
            _give_usual_rights(folder, temporary)
            os.replace(temporary, final)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        # Whoever interrupts gets a clean folder, too.
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _reported(target: str | os.PathLike[str], folder: Path | None = None) -> Iterator[None]:
    """Name the target in errors of writing; leave errors of reading other files as they are."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"`{target}` could not be written: {error}.") from error
    except OSError as error:
        elsewhere = error.filename is not None and folder is not None and str(folder) not in str(error.filename)
        if elsewhere or f"`{target}`" in str(error) or (folder is not None and error.errno is None):
            raise
        raise OSError(error.errno, f"`{target}` could not be written: {error.strerror}") from error


def _give_usual_rights(folder: Path, written: Path) -> None:
    """Give a temporary file, which is private, the permissions that the umask allows."""
    probe, file = folder / "probe-folder", folder / "probe-file"
    probe.mkdir()
    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    rights = {True: probe.stat().st_mode & 0o777, False: file.stat().st_mode & 0o777}
    for path in (written, *(written.rglob("*") if written.is_dir() else ())):
        if not path.is_symlink():
            path.chmod(rights[path.is_dir()])


def check_target(target: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check, before work starts, that a file or folder can be written.

    Args:
        target (`str` or `os.PathLike`): Where to.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing file may be replaced.

    Raises:
        ValueError: If there is something that may not be replaced.
        FileNotFoundError: If its folder does not exist.
    """
    path = Path(os.path.realpath(target))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`{target}` cannot be written: there is no folder `{path.parent}`.")
    if not path.exists():
        return
    if not path.is_file():
        kind = "folder" if path.is_dir() else "device, a pipe or the like"
        raise ValueError(f"`{target}` exists already and is a {kind}, which is not replaced. Give a new name.")
    if not overwrite:
        raise ValueError(f"`{target}` exists already. Give a new name, remove it first, or allow to overwrite it.")


def save_tensors(
    tensors: Mapping[str, torch.Tensor], target: str | os.PathLike[str], metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:  # fmt: skip
    """Write a safetensors file whole or not at all.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Contiguous tensors that share no memory.
        target (`str` or `os.PathLike`): The file.
        metadata (`Mapping[str, str]`, *optional*): Further entries of the header.
        overwrite (`bool`, *optional*, defaults to `True`): Whether an existing file may be replaced.

    Raises:
        ValueError: If there is something at the target that may not be replaced.
        OSError: If it cannot be written.
    """
    with written_at_once(target, overwrite) as temporary:
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))


def numbered(file: str, index: int, count: int) -> str:
    """Return the name of one of several images, `a_0.png` for `a.png`, and the name itself of a single one.

    Args:
        file (`str`): The name.
        index (`int`): The image's number, from 0.
        count (`int`): How many there are.
    """
    if count == 1:
        return file
    path = Path(file)
    return str(path.with_name(f"{path.stem}_{index}{path.suffix}"))
