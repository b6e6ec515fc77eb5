"""Tables of values and paths: csv, json and jsonl, in the reference implementation's format."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....checkpoints.messages import shorten
from .paths import FolderAccess
from .row import Reference, Row, checked_index


TEXT_COLUMNS = ("prompt", "caption", "text")
"""Columns of a csv table that are text even where every cell looks like a number."""


class TableSource:
    """A csv, json or jsonl file of one row per sample, whose file columns hold paths below a folder.

    Args:
        metadata (`str` or `os.PathLike`):
            The table. A json file holds a list of objects, a jsonl file one object a line. In csv, empty cells are
            `None`, columns of numbers become numbers, and cells such as `["a", "b"]` become lists.
        base (`str` or `os.PathLike`, *optional*): The folder of the files; the table's own by default.
        file_columns (`Sequence[str]`, defaults to `("image",)`): Columns of paths, or of lists of paths.
        allow_outside (`bool`, defaults to `False`): Whether paths and links may lead out of the folder.
        allow_urls (`bool`, defaults to `False`): Whether `http(s)://` is fetched.

    Raises:
        FileNotFoundError: if the table or the folder does not exist.
        ValueError: if the table is broken or has no rows; the message names the line.
    """

    def __init__(
        self,
        metadata: str | os.PathLike[str],
        base: str | os.PathLike[str] | None = None,
        file_columns: Sequence[str] = ("image",),
        allow_outside: bool = False,
        allow_urls: bool = False,
    ) -> None:
        path = Path(metadata)
        self.name = str(path)
        self.access = FolderAccess(str(path.parent if base is None else base), allow_outside, allow_urls)
        if not Path(self.access.base).is_dir():
            raise FileNotFoundError(f"There is no folder `{self.access.base}` for the files of `{path}`.")
        self._rows = [_row(name, values, file_columns) for name, values in _read(path, file_columns)]
        if not self._rows:
            raise ValueError(f"`{path}` has no rows.")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        """Return a row; raise an `IndexError` if there is no such one."""
        return self._rows[checked_index(index, len(self), self.name)]

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read a file of the folder, or its beginning; see [`FolderAccess`]."""
        return self.access.open(reference, limit)

    def stamp(self, reference: Reference) -> str:
        """Return size and time of a file of the folder."""
        return self.access.stamp(reference)


def _row(name: str, values: Mapping[str, Any], file_columns: Sequence[str]) -> Row:
    files = {
        column: references_of(name, column, values[column])
        for column in file_columns
        if values.get(column) not in (None, "", [])
    }
    # An empty cell of a file column is a value: None.
    rest = {key: None if key in file_columns else value for key, value in values.items() if key not in files}
    return Row(name, rest, files)


def references_of(name: str, column: str, value: Any) -> Reference | tuple[Reference, ...]:
    """Read a cell of a file column: a path, or a list of paths.

    Args:
        name (`str`): The row, for errors.
        column (`str`): The column, for errors.
        value (`Any`): The cell.

    Returns:
        `Reference` or `tuple[Reference, ...]`

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise ValueError(f"{name}: `{column}` must be a path or a list of paths, got {shorten(repr(value))}.")


def _read(path: Path, file_columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    readers = {".json": _read_json, ".jsonl": _read_jsonl}
    try:
        return readers.get(path.suffix.lower(), lambda each: _read_csv(each, file_columns))(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"`{path}` is not text in UTF-8: {error}.") from error


def _read_json(path: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = parse_json(str(path), path.read_text("utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError(f"`{path}` must hold a list of objects, got {type(rows).__name__}.")
    return [_object(f"{path.name}, entry {number}", each) for number, each in enumerate(rows)]


def _read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    lines = path.read_text("utf-8-sig").split("\n")
    named = [(f"{path.name}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [_object(name, parse_json(name, line)) for name, line in named]


def _object(name: str, value: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object of columns, got {shorten(repr(value))}.")
    return name, value


def parse_json(name: str, text: str) -> Any:
    """Parse JSON; raise a `ValueError` that names its source, also for `NaN` and `Infinity`, which are not JSON."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON value; write null for an empty cell")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}.") from error


def _read_csv(path: Path, file_columns: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for cells in reader:
                if None in cells:
                    raise ValueError(
                        f"{path.name}, line {reader.line_num}: there are more cells than columns. Put texts that "
                        f"contain commas in double quotes."
                    )
                rows.append((f"{path.name}, line {reader.line_num}", {k: v or None for k, v in cells.items()}))
        except csv.Error as error:
            raise ValueError(f"{path.name}, after line {reader.line_num}: {error}.") from error
    return _with_types(rows, file_columns)


def _with_types(
    rows: list[tuple[str, dict[str, Any]]], file_columns: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    for column in rows[0][1] if rows else ():
        convert = None if column in file_columns or column in TEXT_COLUMNS else _number_type(rows, column)
        for _, cells in rows:
            value = cells[column]
            if value is None:
                continue
            if convert is not None:
                cells[column] = convert(value)
            elif column not in TEXT_COLUMNS and value.startswith("[") and value.endswith("]"):
                cells[column] = _list_or_text(value)
    return rows


def _number_type(rows: list[tuple[str, dict[str, Any]]], column: str) -> type[int] | type[float] | None:
    """Return the type of a column's numbers, as long as every cell that is not empty is a finite one."""
    cells = [values[column] for _, values in rows if values[column] is not None]
    for kind in (int, float):
        try:
            numbers = [kind(cell) for cell in cells]
        except ValueError:
            continue
        finite = all(abs(number) <= 1e300 for number in numbers)
        return kind if cells and finite and not any("_" in cell for cell in cells) else None
    return None


def _list_or_text(value: str) -> Any:
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, list) else value
