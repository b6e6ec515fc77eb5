"""The folder of results: images, a record of each job, and errors, all written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...checkpoints.writing import numbered, written_at_once


RECORD, ERROR = ".json", ".error.json"
CLAIMS = ".claims"


class ResultFolder:
    """The results of a run: for each job `<name>.png`, or `<name>_0.png` and so on, and `<name>.json`.

    The record is written last and holds the images' hashes, so that a job counts as done only when all of it is there.
    A job that failed has `<name>.error.json`.

    Args:
        path (`Path`): The folder; it is made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Hashing thousands of images takes a while; once is enough for a run.
        self._verified: dict[str, dict[str, Any]] = {}
        path.mkdir(parents=True, exist_ok=True)

    def record(self, name: str, digest: str) -> dict[str, Any] | None:
        """Return a job's record if all of its images are there as they were written, and `None` otherwise.

        Args:
            name (`str`): The job's name.
            digest (`str`): Its digest.
        """
        if name in self._verified:
            return self._verified[name]
        found = _read(self.path / f"{name}{RECORD}")
        try:
            if found is None or found["digest"] != digest or not all(map(self._is_whole, found["images"])):
                return None
        except (KeyError, TypeError):
            return None
        self._verified[name] = found
        return found

    def _is_whole(self, image: Mapping[str, Any]) -> bool:
        # Names come from a file: only those of this folder count.
        path = self.path / Path(image["file"]).name
        return path.is_file() and sha256_of(path) == image["sha256"]

    def error(self, name: str) -> dict[str, Any] | None:
        """Return the record of a failure.

        Args:
            name (`str`): The job's name.
        """
        return _read(self.path / f"{name}{ERROR}")

    def save(
        self,
        name: str,
        images: Sequence[Image.Image],
        suffix: str,
        write: Callable[[Image.Image, Path, int], Any],
        record: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write a job's images and its record, and remove its error.

        Args:
            name (`str`): The job's name.
            images (`Sequence[PIL.Image.Image]`): Its images.
            suffix (`str`): Their suffix, such as `".png"`.
            write (`Callable`): Writes an image, to a path, by its number.
            record (`Mapping[str, Any]`): What else the record holds.

        Returns:
            `dict[str, Any]`: the record.
        """
        written = []
        for index, image in enumerate(images):
            path = self.path / numbered(f"{name}{suffix}", index, len(images))
            write(image, path, index)
            written.append(
                {"file": path.name, "sha256": sha256_of(path), "width": image.width, "height": image.height}
            )
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
        (self.path / f"{name}{ERROR}").unlink(missing_ok=True)

    def _write(self, file: str, record: Mapping[str, Any]) -> None:
        with written_at_once(self.path / file) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content in hexadecimal.

    Args:
        path (`Path`): The file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """Read a record; what is missing or broken counts as none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
