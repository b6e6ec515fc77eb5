"""Rows of a data set, and the interface of what they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias


Reference: TypeAlias = str
"""A file as its source names it: a path relative to the source's folder, a member of an archive, a cell of a table."""


@dataclass(frozen=True)
class Row:
    """One sample as it is written down: plain values, and references to files that nobody has opened yet.

    Args:
        name (`str`): Where it stands, for errors, such as `"metadata.csv, line 3"`.
        values (`Mapping[str, Any]`): Plain values by column; `None` for an empty cell.
        files (`Mapping[str, Reference | tuple[Reference, ...]]`): By column, a file or several.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Reference | tuple[Reference, ...]] = field(default_factory=dict)

    def references(self, column: str) -> tuple[Reference, ...]:
        """Return the files of a column, none if it is empty or missing."""
        given = self.files.get(column, ())
        return (given,) if isinstance(given, str) else given

    def all_files(self) -> Iterator[tuple[str, Reference]]:
        """Yield each column with each of its files."""
        for column in self.files:
            for reference in self.references(column):
                yield column, reference


class Source(Protocol):
    """Anything that has rows and can open their files; an object that other processes can be sent.

    Attributes:
        name (`str`): What to call it in errors.
    """

    name: str

    def __len__(self) -> int:
        """Return the number of rows."""

    def row(self, index: int) -> Row:
        """Return a row.

        Args:
            index (`int`): Its number, from 0.

        Raises:
            IndexError: if there is no such row.
            ValueError: if the row is broken.
        """

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read a file.

        Args:
            reference (`Reference`): The file, as a row of this source names it.
            limit (`int`, *optional*): How many bytes of its beginning are enough.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it may not be opened, for example because it lies outside of the source's folder.
        """

    def stamp(self, reference: Reference) -> str:
        """Return a text that changes when the file is replaced, at the price of no reading.

        Args:
            reference (`Reference`): The file.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it may not be opened.
        """


def checked_index(index: int, length: int, name: str) -> int:
    """Return a row's number; raise an `IndexError` that names the source where there is no such row."""
    if not 0 <= index < length:
        raise IndexError(f"`{name}` has {length} rows, numbered from 0, got {index}.")
    return index
