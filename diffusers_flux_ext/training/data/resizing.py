"""Scaling and cropping."""

from __future__ import annotations

import math

from PIL import Image


def reference_resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale and crop an image exactly as the reference implementation does.

    Args:
        image (`PIL.Image.Image`): The image.
        height (`int`): Pixels.
        width (`int`): Pixels.

    Returns:
        `PIL.Image.Image` of this size.
    """
    scale = max(width / image.width, height / image.height)
    sides = round(image.width * scale), round(image.height * scale)
    # Its library leaves an image of the right size alone.
    scaled = image if sides == image.size else image.resize(sides, Image.Resampling.BILINEAR)
    top, left = round((scaled.height - height) / 2.0), round((scaled.width - width) / 2.0)
    return scaled.crop((left, top, left + width, top + height))


def reference_size(height: int, width: int, max_pixels: int = 1024 * 1024, step: int = 16) -> tuple[int, int]:
    """Return the size that the reference implementation gives an image: shrunk to an area, never enlarged.

    Args:
        height (`int`): The image's pixels.
        width (`int`): The image's pixels.
        max_pixels (`int`, defaults to 1048576): Area that is shrunk to.
        step (`int`, defaults to 16): Sides are rounded down to multiples of this.

    Returns:
        `tuple[int, int]`: height and width in pixels.

    Raises:
        ValueError: if nothing is left of a side.
    """
    shrunk = height, width
    if width * height > max_pixels:
        scale = (width * height / max_pixels) ** 0.5
        shrunk = int(height / scale), int(width / scale)
    size = shrunk[0] // step * step, shrunk[1] // step * step
    if 0 in size:
        raise ValueError(
            f"An image of {width} x {height} pixels, shrunk to at most {max_pixels}, has less than {step} on a side."
        )
    return size


def cover(image: Image.Image, height: int, width: int, across: float, down: float) -> Image.Image:
    """Scale an image until it covers a size, and crop it, in one step that is exact to fractions of a pixel.

    Args:
        image (`PIL.Image.Image`): In mode `"RGB"`, or `"L"` for masks, whose values are averaged.
        height (`int`): Pixels.
        width (`int`): Pixels.
        across (`float`): Place of the crop between left and right, in [0, 1].
        down (`float`): Place of the crop between top and bottom, in [0, 1].

    Returns:
        `PIL.Image.Image` of this size.
    """
    scale = max(width / image.width, height / image.height)
    inner = min(width / scale, image.width), min(height / scale, image.height)
    left, top = (image.width - inner[0]) * across, (image.height - inner[1]) * down
    box = (left, top, min(left + inner[0], image.width), min(top + inner[1], image.height))
    if image.size == (width, height):
        return image
    return image.resize(
        (width, height), Image.Resampling.LANCZOS if image.mode == "RGB" else Image.Resampling.BOX, box
    )


def aspect(height: int, width: int) -> float:
    """Return the logarithm of height over width, in which distances of aspect ratios are symmetric."""
    return math.log(height / width)
