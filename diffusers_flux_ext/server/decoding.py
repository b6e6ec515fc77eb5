"""What a file of a client holds, found without trusting it."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load

from .errors import wrong_field


# No other decoder of Pillow runs on what clients send.
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
TENSORS = "application/octet-stream"
_ACCEPTED = f"{', '.join(FORMATS.values())}, or {TENSORS} for a tensor (safetensors with one tensor, or npy)"


def look_at(data: bytes, media_type: str | None, field: str, pixels: int) -> dict[str, Any]:
    """Read a file as what it is said to be.

    Args:
        data (`bytes`): The file.
        media_type (`str`, *optional*): What the client says it is.
        field (`str`): Where it came from, for messages.
        pixels (`int`): The most pixels that an image may have.

    Returns:
        `dict[str, Any]`: `kind`, and `width` and `height` of an image.

    Raises:
        RequestError: if it is not that, or too large.
    """
    media_type = (media_type or "").partition(";")[0].strip().lower()
    if media_type == TENSORS:
        _look_at_tensor(data, field)
        return {"kind": "tensor", "width": None, "height": None}
    if media_type not in FORMATS.values():
        raise wrong_field(field, f"got the type {media_type or 'none'!r}; expected {_ACCEPTED}", status=415)
    width, height = _look_at_image(data, field, pixels)
    return {"kind": "image", "width": width, "height": height}


def image_type(data: bytes) -> str | None:
    """Return what kind of image a file begins like, or `None`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return FORMATS["PNG"]
    if data.startswith(b"\xff\xd8\xff"):
        return FORMATS["JPEG"]
    return FORMATS["WEBP"] if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def mask_of_alpha(data: bytes) -> bytes:
    """Return a mask that is white where an image is transparent, as OpenAI's masks mean it.

    Args:
        data (`bytes`): The image, which was looked at before.

    Returns:
        `bytes`: a PNG file.

    Raises:
        RequestError: if no pixel is transparent.
    """
    image = Image.open(io.BytesIO(data), formats=tuple(FORMATS)).convert("RGBA")
    mask = image.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)
    if mask.getbbox() is None:
        raise wrong_field("mask", "no pixel is transparent; those that are to be drawn anew have an alpha of zero")
    written = io.BytesIO()
    mask.save(written, "PNG")
    return written.getvalue()


def _look_at_image(data: bytes, field: str, pixels: int) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            # The limit is the server's own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=tuple(FORMATS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise wrong_field(field, f"is not an image that can be read; expected {_ACCEPTED}") from None
    # The head tells the size, before memory is taken for the pixels.
    if image.width * image.height > pixels:
        message = f"has {image.width} x {image.height} pixels; at most {pixels:,} are accepted"
        raise wrong_field(field, message, status=413)
    if getattr(image, "n_frames", 1) != 1:
        raise wrong_field(field, "is an animation; send one frame as an image")
    try:
        image.load()
    # Pillow's decoders raise errors of many kinds for damaged files.
    except Exception:
        raise wrong_field(field, "is a damaged image: its pixels cannot be read") from None
    return image.size


def _look_at_tensor(data: bytes, field: str) -> None:
    try:
        count = _count_numpy(data) if data.startswith(b"\x93NUMPY") else len(load(data))
    # Readers of files raise errors of many kinds for damaged ones.
    except (SafetensorError, ValueError, OSError, KeyError, TypeError, EOFError, RuntimeError):
        raise wrong_field(field, "is not a safetensors or npy file that can be read") from None
    if count != 1:
        raise wrong_field(field, f"holds {count} tensors; expected a file with one")


def _count_numpy(data: bytes) -> int:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    size = dtype.itemsize
    for side in shape:
        size *= int(side)
    # A head may name more than the file has, which would be allocated.
    if dtype.hasobject or size != len(data) - file.tell():
        raise ValueError("The head does not fit the file.")
    return 1
