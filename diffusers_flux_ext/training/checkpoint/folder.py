"""A folder of checkpoints, of which the newest complete one always exists."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...checkpoints.reading import open_safetensors
from ...checkpoints.writing import written_at_once


FORMAT = 1
LATEST, STATE = "latest", "state.json"
# Room for headers, the state and the file system's own records.
SPARE_BYTES = 16 * 2**20
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        step (`int`): Number of finished updates.
        state (`dict[str, Any]`): Whatever JSON can hold.
        files (`dict[str, dict[str, torch.Tensor]]`): Tensors by file, without the ending, and name.
        path (`Path`): The checkpoint's folder.
    """

    step: int
    state: dict[str, Any]
    files: dict[str, dict[str, torch.Tensor]]
    path: Path


class CheckpointFolder:
    """Writes and reads checkpoints, each a folder `step-00000250`.

    A checkpoint is written under another name, synchronised to the disk and renamed; then `latest` moves to it; only
    then older ones are removed. So a process that is killed at any moment leaves the last complete checkpoint.

    Args:
        folder (`str` or `os.PathLike`): The folder; it is created with the first checkpoint.
        keep (`int`, defaults to 4): How many to keep.

    Raises:
        ValueError: if `keep` is below 1.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 4) -> None:
        if keep < 1:
            raise ValueError(f"`keep` is {keep}; expected at least 1 checkpoint to keep.")
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: Mapping[str, Any], files: Mapping[str, Mapping[str, torch.Tensor]]) -> Path:
        """Write a checkpoint.

        Args:
            step (`int`): Number of finished updates.
            state (`Mapping[str, Any]`): Whatever JSON can hold.
            files (`Mapping[str, Mapping[str, torch.Tensor]]`): Tensors by file, without the ending, and name.

        Returns:
            `Path`: the checkpoint's folder.

        Raises:
            OSError: if there is too little room or the disk fails; earlier checkpoints are intact then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        final = self.folder / f"step-{step:08d}"
        self._check_room(final, files)
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        try:
            temporary.mkdir()
            for name, tensors in files.items():
                save_file(dict(tensors), temporary / f"{name}.safetensors")
            content = {"format": FORMAT, "step": step, "files": sorted(files), **state}
            (temporary / STATE).write_text(json.dumps(content, indent=1))
            _synchronise(temporary)
            if final.exists():
                # An unbroken rename needs a free name; the run has come here before and was resumed from earlier.
                os.rename(final, self.folder / f".{final.name}.{os.getpid()}.old.tmp")
            os.rename(temporary, final)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(
                f"The checkpoint `{final}` could not be written: {error}. Earlier ones are intact."
            ) from error
        _synchronise_folder(self.folder)
        with written_at_once(self.folder / LATEST) as file:
            file.write_text(final.name)
        self._remove_unfinished()
        self._remove_old(final)
        return final

    def latest(self) -> Path | None:
        """Return the folder of the newest complete checkpoint, or `None` if there is none."""
        found = self._complete()
        pointer = self.folder / LATEST
        if pointer.is_file():
            named = self.folder / pointer.read_text().strip()
            if named in found:
                return named
        return found[-1] if found else None

    def load(self, path: str | os.PathLike[str] | None = None) -> Checkpoint | None:
        """Read a checkpoint.

        Args:
            path (`str` or `os.PathLike`, *optional*): A checkpoint's folder; the newest one by default.

        Returns:
            `Checkpoint`, or `None` if there is none.

        Raises:
            ValueError: if it is damaged or was written by a later version.
            FileNotFoundError: if there is no checkpoint at `path`.
        """
        chosen = self.latest() if path is None else Path(path)
        if chosen is None:
            return None
        if not (chosen / STATE).is_file():
            raise FileNotFoundError(f"There is no checkpoint at `{chosen}`: it has no `{STATE}`.")
        try:
            state = json.loads((chosen / STATE).read_text())
            version, step, names = state.pop("format"), state.pop("step"), state.pop("files")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"`{chosen / STATE}` is damaged: {error!r}. Resume from an earlier checkpoint."
            ) from error
        if version != FORMAT:
            raise ValueError(f"The checkpoint `{chosen}` has the format {version!r}; this version reads {FORMAT}.")
        files = {}
        for name in names:
            with open_safetensors(chosen / f"{name}.safetensors") as file:
                files[name] = {key: file.get_tensor(key) for key in file.keys()}
        return Checkpoint(step, state, files, chosen)

    def _complete(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE).is_file()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _check_room(self, final: Path, files: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        needed = sum(value.nbytes for tensors in files.values() for value in tensors.values()) + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"The checkpoint `{final}` needs {needed / 2**20:.0f} MiB, but {free / 2**20:.0f} MiB are free. "
                f"Nothing was written, and earlier checkpoints are intact. Make room, or keep fewer of them."
            )

    def _remove_unfinished(self) -> None:
        for pattern in (".step-*.tmp", f".{LATEST}.*.tmp"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self, newest: Path) -> None:
        for path in [path for path in self._complete() if path != newest][: -(self.keep - 1) or None]:
            # Renamed first, so that one whose removal is interrupted does not pass for complete.
            doomed = self.folder / f".{path.name}.{os.getpid()}.old.tmp"
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _synchronise(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    _synchronise_folder(folder)


def _synchronise_folder(folder: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
