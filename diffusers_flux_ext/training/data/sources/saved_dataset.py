"""Data sets of the `datasets` library, saved to a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .paths import file_stamp
from .row import Reference, Row, checked_index
from .tabular import access_of, bytes_of, place_of, row_of_cells


class SavedDatasetSource:
    """A data set that `Dataset.save_to_disk` of the `datasets` library wrote. Needs `pip install datasets`.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        split (`str`, *optional*): Which part, if the folder holds several.
        file_columns (`Sequence[str]`, defaults to `("image",)`):
            Columns of images or paths; columns of the library's type `Image` are found without being named.
        base (`str` or `os.PathLike`, *optional*): The folder that paths are relative to.
        allow_outside (`bool`, defaults to `False`): Whether paths and links may lead out of the folder `base`.

    Raises:
        ImportError: if `datasets` is not installed.
        FileNotFoundError: if there is no such folder.
        ValueError: if there are several parts and `split` names none of them, or no rows.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str | None = None,
        file_columns: Sequence[str] = ("image",),
        base: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
    ) -> None:
        self.name, self.split, self.file_columns = str(folder), split, tuple(file_columns)
        self.access = access_of(self.name, None if base is None else str(base), allow_outside, allow_urls=False)
        self._data: Any = None
        self._length = len(self._opened())
        if not self._length:
            raise ValueError(f"`{folder}` has no rows.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def __len__(self) -> int:
        return self._length

    def row(self, index: int) -> Row:
        """Return a row; raise an `IndexError` if there is no such one, a `ValueError` if a cell is wrong."""
        cells = self._opened()[checked_index(index, len(self), self.name)]
        return row_of_cells(f"{Path(self.name).name}, row {index}", index, cells, self.file_columns)

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read an image of the data set, or a file of the folder `base`; see [`FolderAccess`]."""
        place = place_of(reference)
        if place is None:
            return self.access.open(reference, limit)
        index, number, column = place
        return bytes_of(self._opened()[index][column], number)[:limit]

    def stamp(self, reference: Reference) -> str:
        """Return sizes and times of the data set's files, or of a file of the folder `base`."""
        if place_of(reference) is None:
            return self.access.stamp(reference)
        return "/".join(file_stamp(each["filename"]) for each in self._opened().cache_files)

    def _opened(self) -> Any:
        if self._data is None:
            self._data = _undecoded(_load(self.name, self.split))
        return self._data


def _load(folder: str, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Saved data sets are read with the datasets library: pip install datasets") from error
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`.")
    found = datasets.load_from_disk(folder)
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"`split` must be one of {sorted(found)} for `{folder}`, got {split!r}.")
        return found[split]
    if split is not None:
        raise ValueError(f"`{folder}` has no parts, so `split` must be None, got {split!r}.")
    return found


def _undecoded(data: Any) -> Any:
    """Keep images as files: they are decoded by the one loader of this package."""
    import datasets

    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(column, type(feature)(datasets.Image(decode=False)))
    return data.with_format(None)
