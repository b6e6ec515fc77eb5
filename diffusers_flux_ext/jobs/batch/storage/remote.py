"""A folder on a store that fsspec knows by its URL."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .lease import FolderLease


class RemoteStore:
    """A folder on an object store or another remote file system.

    What is there is listed once, and only what has been listed or written since is looked at: a store is written by
    one process at a time, see [`~lease.FolderLease`].

    Args:
        filesystem (`fsspec.AbstractFileSystem`): The file system.
        root (`str`): The folder's path on it.
        url (`str`): The folder's URL, for messages.
    """

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.filesystem, self.root, self.url = filesystem, root.rstrip("/"), url.rstrip("/")
        self._sizes: dict[str, int] | None = None

    def where(self, name: str) -> str:
        """Return the URL of a file."""
        return f"{self.url}/{name}"

    def path(self, name: str) -> str:
        """Return the path of a file on the file system."""
        return f"{self.root}/{name}"

    def is_file(self) -> bool:
        """Whether there is a file at the folder's place."""
        with self.reported(""):
            return bool(self.filesystem.isfile(self.root))

    def parent(self) -> tuple[RemoteStore, str]:
        """Return the folder that this one, or the file at its place, lies in, and its name."""
        folder, _, name = self.root.rpartition("/")
        return RemoteStore(self.filesystem, folder, self.url.rpartition("/")[0]), name

    def names(self) -> list[str]:
        """Return the names of all files, in order."""
        return sorted(self._listed())

    def forget(self) -> None:
        """List the folder anew when it is looked at next: another process may have written it."""
        self._sizes = None

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, and `None` if there was none when the folder was listed."""
        return self.read_now(name) if name in self._listed() else None

    def read_now(self, name: str) -> bytes | None:
        """Return the content of a file, listed or not."""
        with self.reported(name):
            try:
                return bytes(self.filesystem.cat_file(self.path(name)))
            except FileNotFoundError:
                return None

    def size_now(self, name: str) -> int:
        """Return the bytes of a file, listed or not; 0 if there is none."""
        with self.reported(name):
            try:
                return int(self.filesystem.info(self.path(name)).get("size") or 0)
            except FileNotFoundError:
                return 0

    def write(self, name: str, data: bytes) -> None:
        """Write a file; object stores write it whole or not at all."""
        listed = self._listed()
        self.write_now(name, data)
        listed[name] = len(data)

    def write_now(self, name: str, data: bytes) -> None:
        """Write a file that is not to be listed."""
        with self.reported(name):
            self.filesystem.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._listed().pop(name, None) is not None:
            self.remove_now(name)

    def remove_now(self, name: str) -> None:
        """Remove a file, listed or not, if it is there."""
        with self.reported(name):
            try:
                self.filesystem.rm_file(self.path(name))
            except FileNotFoundError:
                return

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it is there, in one step where the store can do that; return whether it was written."""
        with self.reported(name):
            self.filesystem.makedirs(self.root, exist_ok=True)
            try:
                self.filesystem.pipe_file(self.path(name), data, mode="create")
            except Exception as error:
                # Packages name a file that is there by errors of their own, and some do not know the mode.
                if self.filesystem.exists(self.path(name)):
                    return False
                if not isinstance(error, TypeError):
                    raise
                self.filesystem.pipe_file(self.path(name), data)
        return True

    def is_as_written(self, name: str, sha256: str, size: int | None) -> bool:
        """Whether a file has the size that it was written with, or, if that is not known, the hash."""
        if name not in self._listed():
            return False
        if size is not None:
            return self._listed()[name] == size
        return hashlib.sha256(self.read(name) or b"").hexdigest() == sha256

    def holder(self, lease: float, pause: float) -> FolderLease:
        """Return a claim on the whole folder."""
        return FolderLease(self, lease, pause)

    def _listed(self) -> dict[str, int]:
        if self._sizes is None:
            with self.reported(""):
                try:
                    self.filesystem.invalidate_cache(self.root)
                    found = self.filesystem.ls(self.root, detail=True)
                except FileNotFoundError:
                    found = []
            self._sizes = {
                each["name"].rstrip("/").rpartition("/")[2]: int(each["size"] or 0)
                for each in found
                if each["type"] == "file"
            }
        return self._sizes

    @contextmanager
    def reported(self, name: str) -> Iterator[None]:
        """Name the file in errors, which become `OSError` whatever a file system raises.

        Args:
            name (`str`): The file.
        """
        try:
            yield
        except Exception as error:
            # Each file system has errors of its own for networks and permissions.
            raise OSError(
                f"`{self.where(name)}` cannot be read or written: {type(error).__name__}: {error}"
            ) from error
