"""A local folder of results."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ....checkpoints.writing import written_at_once
from ..claims import Claims
from .store import CLAIMS


class LocalStore:
    """A folder on a disk of this machine, or on one that machines share.

    Args:
        path (`str` or `os.PathLike`): The folder; it is made if it is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def where(self, name: str) -> str:
        """Return the whole path of a file."""
        return str((self.path / name).resolve())

    def names(self) -> list[str]:
        """Return the names of all files, in order."""
        return sorted(path.name for path in self.path.iterdir() if path.is_file())

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; `None` if it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with written_at_once(self.path / name) as temporary:
            temporary.write_bytes(data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def is_as_written(self, name: str, sha256: str, size: int | None) -> bool:
        """Whether a file has the hash that it was written with."""
        try:
            with (self.path / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def holder(self, lease: float, pause: float) -> Claims:
        """Return claims by a file for each job, which several processes and machines may share."""
        return Claims(self.path / CLAIMS, lease)
