"""A folder of images with captions beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .paths import FolderAccess
from .row import Reference, Row, checked_index
from .tables import parse_json


IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of files that count as images."""

CAPTION_SUFFIXES = (".txt", ".caption")


class FolderSource:
    """All images of a folder, in the order of their paths, with captions from files of the same name.

    `cat.png` takes its caption from `cat.txt` or `cat.caption`, and further columns from `cat.json`, whose
    `"caption"` or `"prompt"` is the caption where there is no text file.

    Args:
        folder (`str` or `os.PathLike`): The folder; folders in it are searched, too.
        column (`str`, defaults to `"image"`): Column of the images.
        beside (`Mapping[str, str]`, *optional*):
            Further file columns, each with the folder (in `folder`) that holds a file of the same name for each
            image, such as `{"controlnet_image": "outlines"}`. Where there is none, the cell is empty.
        allow_outside (`bool`, defaults to `False`): Whether links may lead out of the folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no images.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        column: str = "image",
        beside: Mapping[str, str] | None = None,
        allow_outside: bool = False,
    ) -> None:
        self.name, self.column = str(folder), column
        self.access = FolderAccess(self.name, allow_outside)
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder `{folder}`.")
        self._beside = {name: _by_stem(root, each) for name, each in (beside or {}).items()}
        own = [root / each for each in (beside or {}).values()]
        self._files = [
            path.relative_to(root).as_posix()
            for path in _images(root)
            if not any(path.is_relative_to(each) for each in own)
        ]
        if not self._files:
            raise ValueError(f"`{folder}` has no images: no file ends with {', '.join(IMAGE_SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self._files)

    def row(self, index: int) -> Row:
        """Return an image with its caption.

        Args:
            index (`int`): Its number, in the order of the paths.

        Returns:
            `Row`: the caption, if there is one, is the value `"prompt"`.

        Raises:
            IndexError: if there is no such row.
            ValueError: if a file beside the image is broken.
        """
        file = self._files[checked_index(index, len(self), self.name)]
        stem = file.rpartition(".")[0]
        values = {**self._json(f"{stem}.json"), **self._caption(stem)}
        files: dict[str, Reference | tuple[Reference, ...]] = {self.column: file}
        files |= {name: found[stem] for name, found in self._beside.items() if stem in found}
        return Row(f"{Path(self.name).name}: {file}", values, files)

    def open(self, reference: Reference, limit: int | None = None) -> bytes:
        """Read a file of the folder, or its beginning; see [`FolderAccess`]."""
        return self.access.open(reference, limit)

    def stamp(self, reference: Reference) -> str:
        """Return size and time of a file of the folder."""
        return self.access.stamp(reference)

    def _caption(self, stem: str) -> dict[str, str]:
        for suffix in CAPTION_SUFFIXES:
            text = self._text(f"{stem}{suffix}")
            if text is not None:
                return {"prompt": text.strip()}
        return {}

    def _json(self, file: str) -> dict[str, Any]:
        text = self._text(file)
        if text is None:
            return {}
        values = parse_json(f"{self.name}: {file}", text)
        if not isinstance(values, dict):
            raise ValueError(f"{self.name}: {file} must hold an object of columns, got {type(values).__name__}.")
        caption = values.pop("caption", None)
        return values if caption is None else {"prompt": caption, **values}

    def _text(self, file: str) -> str | None:
        try:
            return self.access.open(file).decode("utf-8-sig")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name}: {file} is not text in UTF-8: {error}.") from error


def _images(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    within = root / folder
    if not within.is_dir():
        raise FileNotFoundError(f"There is no folder `{within}`.")
    return {
        path.relative_to(within).with_suffix("").as_posix(): path.relative_to(root).as_posix()
        for path in _images(within)
    }
