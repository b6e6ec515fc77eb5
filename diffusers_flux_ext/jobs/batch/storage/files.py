"""The files that the jobs of a list name, wherever the list is."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import JobError
from ...files import JobFiles
from .opening import located
from .remote import RemoteStore


def files_beside(base: str | os.PathLike[str]) -> JobFiles:
    """Return the files of jobs whose list lies in a folder.

    Args:
        base (`str` or `os.PathLike`): The folder, or its URL.

    Returns:
        `JobFiles`
    """
    found = located(base)
    return JobFiles(found) if isinstance(found, Path) else _RemoteFiles(found)


class _RemoteFiles(JobFiles):
    """Files beside a list on a remote store; absolute paths are those of this machine."""

    def __init__(self, store: RemoteStore) -> None:
        super().__init__()
        self.store = store

    def _of_path(self, value: str, field: str) -> bytes:
        if os.path.isabs(value):
            return super()._of_path(value, field)
        try:
            if self.store.size_now(value) > self.max_bytes:
                raise JobError.of(field, f"is {value!r}, which has more than {self.max_bytes} bytes")
            data = self.store.read_now(value)
        except OSError as error:
            raise JobError.of(field, f"is {value[:200]!r}, which cannot be read: {error}") from error
        if data is None:
            raise JobError.of(field, f"is {value!r}, which does not exist")
        return data
