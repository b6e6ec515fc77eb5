"""Cells of parquet files and saved data sets: values, paths, and images inside of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....checkpoints.messages import shorten
from .paths import FolderAccess
from .row import Reference, Row
from .tables import references_of


_INSIDE = "cell:"


def row_of_cells(name: str, index: int, cells: Mapping[str, Any], file_columns: Sequence[str]) -> Row:
    """Make a row of a table's cells; an image inside of the table is referred to by its place.

    Args:
        name (`str`): The row, for errors.
        index (`int`): Its number.
        cells (`Mapping[str, Any]`): Values by column; images are bytes, or objects of `bytes` and `path`.
        file_columns (`Sequence[str]`): Columns of images or paths; others with bytes count as such.

    Returns:
        `Row`

    Raises:
        ValueError: if a file column holds something else.
    """
    values: dict[str, Any] = {}
    files: dict[str, Reference | tuple[Reference, ...]] = {}
    for column, cell in cells.items():
        if column not in file_columns and not holds_bytes(cell):
            values[column] = None if _is_nan(cell) else cell
        elif cell in (None, "", []):
            values[column] = None
        else:
            files[column] = _references(name, index, column, cell)
    return Row(name, values, files)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and cell != cell


def holds_bytes(cell: Any) -> bool:
    """Whether a cell is an image inside of the table, or a list of them."""
    if isinstance(cell, (list, tuple)):
        return bool(cell) and all(holds_bytes(each) for each in cell)
    return isinstance(cell, bytes) or (isinstance(cell, Mapping) and set(cell) == {"bytes", "path"})


def _references(name: str, index: int, column: str, cell: Any) -> Reference | tuple[Reference, ...]:
    if isinstance(cell, (list, tuple)):
        return tuple(_reference(name, index, column, place, each) for place, each in enumerate(cell))
    return _reference(name, index, column, 0, cell)


def _reference(name: str, index: int, column: str, place: int, cell: Any) -> Reference:
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        cell = cell.get("path")
    if holds_bytes(cell):
        return f"{_INSIDE}{index}/{place}/{column}"
    if isinstance(cell, str) and cell.startswith(_INSIDE):
        raise ValueError(f"{name}: `{column}` must be a path, got {shorten(cell)}.")
    found = references_of(name, column, cell)
    return found if isinstance(found, str) else found[0]


def place_of(reference: Reference) -> tuple[int, int, str] | None:
    """Return row, place in the cell's list, and column of an image inside of the table; `None` for a path."""
    if not reference.startswith(_INSIDE):
        return None
    index, place, column = reference.removeprefix(_INSIDE).split("/", 2)
    return int(index), int(place), column


def bytes_of(cell: Any, place: int) -> bytes:
    """Return an image's bytes.

    Args:
        cell (`Any`): Its cell.
        place (`int`): Its place, if the cell is a list.

    Returns:
        `bytes`
    """
    one = cell[place] if isinstance(cell, (list, tuple)) else cell
    content: bytes = one["bytes"] if isinstance(one, Mapping) else one
    return content


def access_of(name: str, base: str | None, allow_outside: bool, allow_urls: bool) -> FolderAccess:
    """Return what opens the paths of a table; without a folder, nothing is opened."""
    if base is None:
        return _NoFolder(name)
    return FolderAccess(base, allow_outside, allow_urls)


class _NoFolder(FolderAccess):
    def path(self, reference: str) -> Any:
        raise ValueError(
            f"`{self.base}` names the file `{shorten(reference)}`. Give the folder that it is relative to as `base`."
        )

    def open(self, reference: str, limit: int | None = None) -> bytes:
        raise self.path(reference)

    def stamp(self, reference: str) -> str:
        raise self.path(reference)
