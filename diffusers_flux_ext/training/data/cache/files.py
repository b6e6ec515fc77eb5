"""Hashes of files, remembered as long as their size and time stay the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....checkpoints.writing import written_at_once
from ..sources.row import Row, Source
from .keys import bytes_digest, digest


class FileHashes:
    """Hashes of a data set's files.

    Args:
        known (`Mapping[str, list[str]]`): Stamp and hash of files by what [`digest`] makes of source and name.
    """

    def __init__(self, known: Mapping[str, list[str]]) -> None:
        self._known = known
        self.used: dict[str, list[str]] = {}

    def of_row(self, source: Source, row: Row, columns: set[str]) -> dict[str, list[str]]:
        """Return the hashes of a row's files.

        Args:
            source (`Source`): Where the row comes from.
            row (`Row`): The row.
            columns (`set[str]`): Which columns count.

        Returns:
            `dict[str, list[str]]`: by column.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if it may not be opened.
        """
        found: dict[str, list[str]] = {}
        for column, reference in row.all_files():
            if column in columns:
                found.setdefault(column, []).append(self._of_file(source, reference))
        return found

    def _of_file(self, source: Source, reference: str) -> str:
        name, stamp = digest([source.name, reference]), source.stamp(reference)
        entry = self.used.get(name) or self._known.get(name)
        if entry is None or entry[0] != stamp:
            entry = [stamp, bytes_digest(source.open(reference))]
        self.used[name] = entry
        return entry[1]


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a file that this package wrote; `None` if it is missing or broken."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all, and wait until the disk has it."""
    with written_at_once(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
