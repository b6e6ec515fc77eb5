"""One loader for all image files: every mode as RGB of 8 bits, upright, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ...inputs.checks import check_choice


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
"""File formats that are opened; pillow's others, some of which start programs, are not."""

_TRANSPOSED = (5, 6, 7, 8)
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, struct.error, zlib.error)


@dataclass(frozen=True)
class ImageOptions:
    """How image files are read.

    Args:
        background (`tuple[int, int, int]`, defaults to white): RGB in [0, 255] that transparency is composed on.
        animated (`"first"` or `"refuse"`, defaults to `"first"`):
            Take the first frame of a file of several, or raise an error.
        max_pixels (`int`, defaults to 2**26): Larger images, 8192 x 8192 by default, are refused before decoding.

    Raises:
        ValueError: if an option is out of range.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    animated: Literal["first", "refuse"] = "first"
    max_pixels: int = 2**26

    def __post_init__(self) -> None:
        check_choice("`animated` of ImageOptions", self.animated, ("first", "refuse"))
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"`background` of ImageOptions must be three numbers up to 255, got {self.background}.")
        # Beyond this, pillow itself warns of a decompression bomb.
        if not 0 < self.max_pixels <= 89_478_485:
            raise ValueError(f"`max_pixels` of ImageOptions must be in [1, 89478485], got {self.max_pixels}.")


@dataclass(frozen=True)
class Header:
    """What an image file says before it is decoded.

    Args:
        height (`int`): Pixels, upright.
        width (`int`): Pixels, upright.
        mode (`str`): Pillow's mode, such as `"RGB"`.
        format (`str`): Such as `"PNG"`.
        frames (`int`): More than 1 if it is animated.
    """

    height: int
    width: int
    mode: str
    format: str
    frames: int


def read_header(content: bytes, name: str, options: ImageOptions = ImageOptions()) -> Header:
    """Read size and mode of an image without decoding it.

    Args:
        content (`bytes`): The file.
        name (`str`): What to call it in errors.
        options (`ImageOptions`): What is refused.

    Returns:
        `Header`

    Raises:
        ValueError: if it is not an image, too large, animated where that is refused, or of a mode without 8-bit
            counterpart.
    """
    with _opened(content, name, options) as image:
        width, height = image.size
        if _may_be_turned(image, content) and image.getexif().get(ExifTags.Base.Orientation) in _TRANSPOSED:
            width, height = height, width
        return Header(height, width, image.mode, image.format or "", getattr(image, "n_frames", 1))


def load_image(content: bytes, name: str, options: ImageOptions = ImageOptions()) -> Image.Image:
    """Decode an image file.

    Args:
        content (`bytes`): The file.
        name (`str`): What to call it in errors.
        options (`ImageOptions`): What transparency is composed on, and what is refused.

    Returns:
        `PIL.Image.Image`: RGB, turned as its EXIF data says.

    Raises:
        ValueError: as [`read_header`], and if the file is truncated or broken.
    """
    with _opened(content, name, options) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return _in_rgb(upright, options.background)


def load_mask(content: bytes, name: str, options: ImageOptions = ImageOptions()) -> Image.Image:
    """Decode a mask: bright pixels count, transparent ones do not.

    Args:
        content (`bytes`): The file.
        name (`str`): What to call it in errors.
        options (`ImageOptions`): What is refused; masks are composed on black.

    Returns:
        `PIL.Image.Image`: mode `"L"`, turned as its EXIF data says.

    Raises:
        ValueError: as [`load_image`].
    """
    black = ImageOptions((0, 0, 0), options.animated, options.max_pixels)
    return load_image(content, name, black).convert("L")


def _may_be_turned(image: Image.Image, content: bytes) -> bool:
    """Whether to ask for an orientation, for which pillow decodes PNG files that do not mention one."""
    return image.format != "PNG" or any(mark in content for mark in _PNG_ORIENTATION)


@contextmanager
def _opened(content: bytes, name: str, options: ImageOptions) -> Iterator[Image.Image]:
    Image.init()
    try:
        image = Image.open(io.BytesIO(content), formats=[each for each in FORMATS if each in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} is too large: {error}.") from error
    except _BROKEN as error:
        raise ValueError(
            f"{name} is not an image of the formats {', '.join(FORMATS)}, or its header is broken ({len(content)} "
            f"bytes)."
        ) from error
    with image:
        _check_header(image, name, options)
        try:
            yield image
        except _BROKEN as error:
            raise ValueError(f"{name} is truncated or broken: {error}.") from error


def _check_header(image: Image.Image, name: str, options: ImageOptions) -> None:
    if image.width * image.height > options.max_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels, more than the {options.max_pixels} of `max_pixels`. "
            f"Shrink it, or raise the limit."
        )
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"{name} has pixels of 32 bits (mode {image.mode!r}). Save it with 8 or 16 bits.")
    if options.animated == "refuse" and getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{name} is animated. Save the frame that you mean, or set `animated='first'`.")


def _in_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _in_8_bits(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        alpha = image.convert("RGBA")
        below: Any = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(below, alpha).convert("RGB")
    # A new object without the file's information, so that results depend on pixels alone.
    return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())


def _in_8_bits(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
