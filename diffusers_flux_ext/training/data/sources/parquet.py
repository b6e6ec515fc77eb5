"""Parquet files."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from .paths import file_stamp
from .row import Reference, Row, checked_index
from .tabular import access_of, bytes_of, place_of, row_of_cells


class ParquetSource:
    """Parquet files of one row per sample. Needs `pip install pyarrow`.

    Images are bytes, objects of `bytes` and `path` as the `datasets` library writes them, or paths.

    Args:
        files (`str`, `os.PathLike` or a list of them): The parquet files, with the same columns.
        file_columns (`Sequence[str]`, defaults to `("image",)`):
            Columns of images or paths. Other columns whose cells are bytes count as images, too.
        base (`str` or `os.PathLike`, *optional*): The folder that paths are relative to.
        allow_outside (`bool`, defaults to `False`): Whether paths and links may lead out of the folder.
        allow_urls (`bool`, defaults to `False`): Whether `http(s)://` is fetched.

    Raises:
        ImportError: if pyarrow is not installed.
        FileNotFoundError: if a file is missing.
        ValueError: if a file is broken or there are no rows.
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        file_columns: Sequence[str] = ("image",),
        base: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
        allow_urls: bool = False,
    ) -> None:
        listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
        self._paths, self.file_columns = [str(path) for path in listed], tuple(file_columns)
        self.name = self._paths[0] if len(self._paths) == 1 else f"{len(self._paths)} parquet files"
        self.access = access_of(self.name, None if base is None else str(base), allow_outside, allow_urls)
        self._groups = [(path, group, rows) for path in self._paths for group, rows in enumerate(_row_counts(path))]
        self._ends = list(accumulate(rows for _, _, rows in self._groups))
        self._kept: tuple[int, Any] | None = None
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"`{self.name}` has no rows.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def __len__(self) -> int:
        return self._ends[-1]

    def row(self, index: int) -> Row:
        """Return a row; raise an `IndexError` if there is no such one, a `ValueError` if a cell is wrong."""
        path = self._groups[bisect_right(self._ends, checked_index(index, len(self), self.name))][0]
        return row_of_cells(f"{Path(path).name}, row {index}", index, self._cells(index), self.file_columns)

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read an image of the table, or a file of the folder; see [`FolderAccess`]."""
        place = place_of(reference)
        if place is None:
            return self.access.open(reference, limit)
        index, number, column = place
        return bytes_of(self._cells(index)[column], number)[:limit]

    def stamp(self, reference: Reference) -> str:
        """Return size and time of the parquet file, or of a file of the folder."""
        place = place_of(reference)
        if place is None:
            return self.access.stamp(reference)
        return file_stamp(self._groups[bisect_right(self._ends, place[0])][0])

    def _cells(self, index: int) -> dict[str, Any]:
        group = bisect_right(self._ends, index)
        # Read once, since another thread may replace it.
        kept = self._kept
        if kept is None or kept[0] != group:
            path, number, _ = self._groups[group]
            self._kept = kept = group, _parquet().ParquetFile(path).read_row_group(number)
        start = self._ends[group] - self._groups[group][2]
        cells: dict[str, Any] = kept[1].slice(index - start, 1).to_pylist()[0]
        return cells


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files are read with pyarrow: pip install pyarrow") from error
    return pyarrow.parquet


def _row_counts(path: str) -> list[int]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    parquet = _parquet()
    import pyarrow

    try:
        metadata = parquet.ParquetFile(path).metadata
    except pyarrow.ArrowException as error:
        raise ValueError(f"`{path}` is not a parquet file: {error}.") from error
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
