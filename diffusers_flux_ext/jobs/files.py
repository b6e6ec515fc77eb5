"""The files that a job names: found, limited and decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..tiny import TINY
from .decoding import decode_image, decode_tensor, is_tensor
from .errors import JobError
from .shapes import draw_region
from .values import ImageValue, Polygon, RegionValue, StoredFile, Strokes, TensorValue


DATA, UPLOAD = "data:", "upload:"
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 10**6

Uploads = Mapping[str, bytes] | Callable[[str], bytes]


class JobFiles:
    """Finds and decodes what a job names.

    Args:
        base (`Path`, *optional*): Folder of relative paths, that of the job's file; the working directory by default.
        uploads (`Mapping[str, bytes]` or `Callable[[str], bytes]`, *optional*):
            The content of uploads, by their SHA-256; a function raises `LookupError` for unknown ones.
        allow_paths (`bool`, defaults to `True`): Whether images and tensors may be named by paths.
        max_bytes (`int`, defaults to 64 MiB): The most bytes of a file.
        max_pixels (`int`, defaults to 64 million): The most pixels of an image.
    """

    def __init__(
        self,
        base: Path | None = None,
        uploads: Uploads | None = None,
        allow_paths: bool = True,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.base, self.allow_paths = base, allow_paths
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self._uploads: Uploads = {} if uploads is None else uploads

    def read(self, value: str | StoredFile, field: str) -> bytes:
        """Return the content of a file.

        Args:
            value (`str` or `StoredFile`): A path, a `data:` URL, `upload:` and a SHA-256, or a name and a SHA-256.
            field (`str`): The field of the job, for errors.

        Returns:
            `bytes`

        Raises:
            JobError: if it is missing, has changed or is too large.
        """
        if isinstance(value, StoredFile):
            return self._stored(value, field)
        if value.startswith(DATA):
            return self._inline(value, field)
        if value.startswith(UPLOAD):
            data = self._uploaded(value.removeprefix(UPLOAD))
            if data is None:
                raise JobError.of(field, f"is {value[:80]!r}, which has not been uploaded")
            return self._limited(data, field)
        return self._of_path(value, field)

    def image(self, value: ImageValue, field: str) -> Image.Image | np.ndarray | torch.Tensor:
        """Return an image, or what a tensor's file holds in its place; raise a [`JobError`] for anything else."""
        return self._pixels(value.root, field)

    def region(
        self, value: RegionValue, field: str, size: tuple[int, int]
    ) -> Image.Image | np.ndarray | torch.Tensor | tuple[float, ...]:
        """Return a region: a box, or an image; raise a [`JobError`] for anything else.

        Args:
            value (`RegionValue`): The region.
            field (`str`): The field of the job, for errors.
            size (`tuple[int, int]`): Width and height of the canvas, for strokes and polygons.

        Returns:
            `tuple[float, float, float, float]`, `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`
        """
        if isinstance(value.root, tuple):
            return value.root
        if isinstance(value.root, (Strokes, Polygon)):
            return draw_region(value.root, size)
        return self._pixels(value.root, field)

    def tensor(self, value: TensorValue, field: str) -> torch.Tensor:
        """Return a tensor; raise a [`JobError`] for anything else."""
        found = self._decoded(decode_tensor, self.read(value.root, field), field)
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else found

    def digest(self, value: str | StoredFile, field: str) -> str:
        """Return the SHA-256 of a file's content, as hexadecimal digits."""
        return hashlib.sha256(self.read(value, field)).hexdigest()

    def source(self, path: str) -> str:
        """Return the path of a model, a module or a LoRA: beside the job if it is there, otherwise as it is."""
        beside = None if self.base is None or path == TINY else self.base / path
        return str(beside) if beside is not None and beside.exists() else path

    def _pixels(self, value: str | StoredFile, field: str) -> Image.Image | np.ndarray | torch.Tensor:
        data = self.read(value, field)
        if is_tensor(data):
            return self._decoded(decode_tensor, data, field)
        return self._decoded(lambda each: decode_image(each, self.max_pixels), data, field)

    def _decoded(self, decode: Callable[[bytes], Any], data: bytes, field: str) -> Any:
        try:
            return decode(data)
        except ValueError as error:
            raise JobError.of(field, str(error)) from error

    def _stored(self, value: StoredFile, field: str) -> bytes:
        data = self._uploaded(value.sha256)
        data = self._of_path(value.file, field) if data is None else self._limited(data, field)
        if hashlib.sha256(data).hexdigest() != value.sha256:
            raise JobError.of(field, f"is `{value.file}`, whose content has changed since: it has another SHA-256")
        return data

    def _uploaded(self, digest: str) -> bytes | None:
        try:
            return self._uploads(digest) if callable(self._uploads) else self._uploads.get(digest)
        except (LookupError, OSError):
            return None

    def _inline(self, value: str, field: str) -> bytes:
        head, separator, text = value.partition(",")
        if not separator or not head.endswith(";base64"):
            raise JobError.of(field, "is a `data:` URL without `;base64,`, which is the form that is read")
        if len(text) * 3 // 4 > self.max_bytes + 2:
            raise JobError.of(field, f"has more than {self.max_bytes} bytes")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise JobError.of(field, "is a `data:` URL whose content is not base64") from None

    def _of_path(self, value: str, field: str) -> bytes:
        if not self.allow_paths:
            raise JobError.of(field, "names a file, which is not possible here; give an upload or a `data:` URL")
        path = (self.base or Path()) / value
        try:
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "does not exist"
                raise JobError.of(field, f"is {value!r}, which {what}")
            if path.stat().st_size > self.max_bytes:
                raise JobError.of(field, f"is {value!r}, which has more than {self.max_bytes} bytes")
            return path.read_bytes()
        except (OSError, ValueError) as error:
            if isinstance(error, JobError):
                raise
            raise JobError.of(field, f"is {value[:200]!r}, which cannot be read: {error}") from error

    def _limited(self, data: bytes, field: str) -> bytes:
        if len(data) > self.max_bytes:
            raise JobError.of(field, f"has {len(data)} bytes, more than {self.max_bytes}")
        return data
