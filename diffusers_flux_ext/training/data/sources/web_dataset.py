"""WebDataset: tar files whose members of one name are a sample."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....checkpoints.messages import shorten
from .folder import IMAGE_SUFFIXES
from .paths import file_stamp
from .row import Reference, Row, checked_index
from .tables import parse_json


_TEXTS = {"txt": "prompt", "caption": "prompt"}
_PICKLES = ("ckpt", "npy", "npz", "pickle", "pkl", "pt", "pth", "pyd")


class WebDatasetSource:
    """Uncompressed tar files in the layout of WebDataset, read in place; nothing is extracted.

    A member's name up to the first dot says which sample it belongs to, the rest what it is: `0001.jpg` is the image,
    `0001.txt` or `0001.caption` the prompt, `0001.json` holds further columns, and `0001.mask.png` goes to the file
    column `mask`.

    Args:
        shards (`str`, `os.PathLike` or a list of them): The tar files.
        column (`str`, defaults to `"image"`): Column of the images.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not a plain tar file, has no samples, or holds pickles, links or the like.
    """

    def __init__(
        self, shards: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], column: str = "image"
    ) -> None:
        listed = [shards] if isinstance(shards, (str, os.PathLike)) else list(shards)
        self._paths, self.column = [str(path) for path in listed], column
        self.name = self._paths[0] if len(self._paths) == 1 else f"{len(self._paths)} tar files"
        # By reference: the file's number, where the member begins, and its size.
        self._places: dict[Reference, tuple[int, int, int]] = {}
        samples: dict[str, dict[str, Reference]] = {}
        for number, path in enumerate(self._paths):
            self._index(number, path, samples)
        self._samples = [(key, parts) for key, parts in samples.items() if self._has_image(parts)]
        if not self._samples:
            raise ValueError(f"`{self.name}` has no samples with an image ({', '.join(IMAGE_SUFFIXES)}).")

    def __len__(self) -> int:
        return len(self._samples)

    def row(self, index: int) -> Row:
        """Return a sample.

        Args:
            index (`int`): Its number, in the order of the files.

        Returns:
            `Row`

        Raises:
            IndexError: if there is no such row.
            ValueError: if its JSON or text is broken.
        """
        key, parts = self._samples[checked_index(index, len(self), self.name)]
        values: dict[str, Any] = {}
        files: dict[str, Reference | tuple[Reference, ...]] = {}
        for kind, reference in parts.items():
            column, _, suffix = kind.rpartition(".")
            if f".{suffix}" in IMAGE_SUFFIXES:
                files[column or self.column] = reference
            elif kind == "json":
                values = {**self._json(reference), **values}
            elif kind in _TEXTS:
                values[_TEXTS[kind]] = self._text(reference).strip()
        return Row(key, values, files)

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read a member, or its beginning; raise a `FileNotFoundError` if there is none of this name."""
        if reference not in self._places:
            raise FileNotFoundError(f"`{self.name}` has no member `{shorten(reference)}`.")
        number, start, size = self._places[reference]
        with open(self._paths[number], "rb") as file:
            file.seek(start)
            return file.read(size if limit is None else min(size, limit))

    def stamp(self, reference: Reference) -> str:
        """Return size and time of the tar file that a member lies in."""
        return file_stamp(self._paths[self._places[reference][0]])

    def _has_image(self, parts: Mapping[str, Reference]) -> bool:
        return any(f".{kind}" in IMAGE_SUFFIXES for kind in parts)

    def _text(self, reference: Reference) -> str:
        try:
            return self.open(reference).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{reference} is not text in UTF-8: {error}.") from error

    def _json(self, reference: Reference) -> dict[str, Any]:
        values = parse_json(reference, self._text(reference))
        if not isinstance(values, dict):
            raise ValueError(f"{reference} must hold an object of columns, got {type(values).__name__}.")
        caption = values.pop("caption", None)
        return values if caption is None else {"prompt": caption, **values}

    def _index(self, number: int, path: str, samples: dict[str, dict[str, Reference]]) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file `{path}`.")
        try:
            with tarfile.open(path, "r:") as archive:
                members = archive.getmembers()
        except tarfile.TarError as error:
            raise ValueError(
                f"`{path}` is not an uncompressed tar file: {error}. Unpack a compressed one first, since samples are "
                f"read in any order."
            ) from error
        for member in members:
            if member.isdir():
                continue
            folder, _, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            _check_member(path, member, kind)
            reference = f"{Path(path).name}: {member.name}"
            if reference in self._places:
                raise ValueError(f"`{path}` has the member `{shorten(member.name)}` twice, or is given twice.")
            self._places[reference] = (number, member.offset_data, member.size)
            key = f"{Path(path).name}: {folder}/{stem}" if folder else f"{Path(path).name}: {stem}"
            samples.setdefault(key, {})[kind.lower()] = reference


def _check_member(path: str, member: tarfile.TarInfo, kind: str) -> None:
    if not member.isreg() or member.issparse():
        raise ValueError(f"`{path}`: `{shorten(member.name)}` is not a regular file.")
    if kind.lower().rpartition(".")[2] in _PICKLES:
        raise ValueError(
            f"`{path}`: `{shorten(member.name)}` may be a pickle, which could run any code. Pack tensors as "
            f"safetensors and values as JSON."
        )
