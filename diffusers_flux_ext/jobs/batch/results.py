"""The folder of results: images, a record of each job, and errors, all written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checkpoints.writing import numbered
from .engine import Encoded
from .storage import Store, open_store


RECORD, ERROR = ".json", ".error.json"
STARTS = ".starts"


class ResultFolder:
    """The results of a run: for each job `<name>.png`, or `<name>_0.png` and so on, and `<name>.json`.

    The record is written last and holds the images' hashes, so that a job counts as done only when all of it is there.
    A job that failed has `<name>.error.json`.

    Args:
        place (`str` or `os.PathLike`): The folder or its URL; a local one is made if it is missing.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.store: Store = open_store(place)
        # Hashing thousands of images takes a while; once is enough for a run.
        self._verified: dict[str, dict[str, Any]] = {}

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        """Return a job's record if all of its images are there as they were written, and `None` otherwise.

        Args:
            name (`str`): The job's name.
            digest (`str`): Its digest.
        """
        if name in self._verified:
            return self._verified[name]
        found = self._read(f"{name}{RECORD}")
        try:
            if found is None or found["digest"] != digest or not all(map(self._is_whole, found["images"])):
                return None
        except (KeyError, TypeError):
            return None
        self._verified[name] = found
        return found

    def _is_whole(self, image: Mapping[str, Any]) -> bool:
        # Names come from a file: only those of this folder count.
        return self.store.is_as_written(Path(image["file"]).name, image["sha256"], image.get("bytes"))

    def error(self, name: str) -> dict[str, Any] | None:
        """Return the record of a failure.

        Args:
            name (`str`): The job's name.
        """
        return self._read(f"{name}{ERROR}")

    def save(self, name: str, images: Sequence[Encoded], suffix: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a job's images and its record, and remove its error.

        Args:
            name (`str`): The job's name.
            images (`Sequence[Encoded]`): Its images.
            suffix (`str`): Their suffix, such as `".png"`.
            record (`Mapping[str, Any]`): What else the record holds.

        Returns:
            `dict[str, Any]`: the record.
        """
        written = []
        for index, image in enumerate(images):
            file = numbered(f"{name}{suffix}", index, len(images))
            self.store.write(file, image.data)
            digest = hashlib.sha256(image.data).hexdigest()
            size = {"bytes": len(image.data), "width": image.width, "height": image.height}
            written.append({"file": file, "sha256": digest, **size})
        whole = {**record, "images": written}
        self._write(f"{name}{RECORD}", whole)
        self.forget_error(name)
        return whole

    def save_error(self, name: str, record: Mapping[str, Any]) -> None:
        """Write the record of a failure.

        Args:
            name (`str`): The job's name.
            record (`Mapping[str, Any]`): What it holds.
        """
        self._write(f"{name}{ERROR}", record)

    def forget_error(self, name: str) -> None:
        """Remove the record of a failure, if there is one.

        Args:
            name (`str`): The job's name.
        """
        self.store.remove(f"{name}{ERROR}")

    def starts(self, name: str) -> int:
        """Return how often a job was begun by processes that ended while they drew it.

        Args:
            name (`str`): The job's name.
        """
        text = self.store.read(f".{name}{STARTS}") or b""
        return int(text) if text.isdigit() else 0

    def count_start(self, name: str, count: int) -> None:
        """Write down how often a job was begun; 0 removes the note.

        Args:
            name (`str`): The job's name.
            count (`int`): How often.
        """
        if count:
            self.store.write(f".{name}{STARTS}", str(count).encode())
        else:
            self.store.remove(f".{name}{STARTS}")

    def _read(self, file: str) -> dict[str, Any] | None:
        """Read a record; what is missing or broken counts as none."""
        try:
            content = json.loads(self.store.read(file) or b"")
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def _write(self, file: str, record: Mapping[str, Any]) -> None:
        self.store.write(file, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
