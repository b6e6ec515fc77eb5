"""What a file of a client holds, found without trusting it."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from .errors import wrong_field


# No other decoder of Pillow runs on what clients send.
IMAGES = ("image/png", "image/jpeg", "image/webp")
TENSORS = "application/octet-stream"
_ACCEPTED = f"{', '.join(IMAGES)}, or {TENSORS} for a tensor (safetensors with one tensor, or npy)"


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
    if media_type not in (*IMAGES, TENSORS):
        raise wrong_field(field, f"got the type {media_type or 'none'!r}; expected {_ACCEPTED}", status=415)
    # Jobs import every method, which takes seconds that a server without uploads does not need.
    from ..jobs.decoding import decode_image, decode_tensor

    try:
        if media_type == TENSORS:
            decode_tensor(data)
            return {"kind": "tensor", "width": None, "height": None}
        if image_type(data) != media_type:
            raise ValueError(f"is not an image of the type {media_type}")
        image = decode_image(data, pixels)
    except ValueError as error:
        raise wrong_field(field, str(error)) from None
    return {"kind": "image", "width": image.width, "height": image.height}


def image_type(data: bytes) -> str | None:
    """Return what kind of image a file begins like, or `None`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return IMAGES[0]
    if data.startswith(b"\xff\xd8\xff"):
        return IMAGES[1]
    return IMAGES[2] if data.startswith(b"RIFF") and data[8:12] == b"WEBP" else None


def mask_of_alpha(data: bytes) -> bytes:
    """Return a mask that is white where an image is transparent, as OpenAI's masks mean it.

    Args:
        data (`bytes`): The image, which was looked at before.

    Returns:
        `bytes`: a PNG file.

    Raises:
        RequestError: if no pixel is transparent.
    """
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as opened:
        image = opened.convert("RGBA")
    mask = image.getchannel("A").point([255] + [0] * 255)
    if mask.getbbox() is None:
        raise wrong_field("mask", "no pixel is transparent; those that are to be drawn anew have an alpha of zero")
    written = io.BytesIO()
    mask.save(written, "PNG")
    return written.getvalue()
