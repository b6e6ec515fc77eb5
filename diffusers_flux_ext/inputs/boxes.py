"""Boxes in pixels or in fractions of a canvas; needs neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Sequence


def box_in_pixels(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """Return the sides of a box in pixels.

    Args:
        box (`Sequence[float]`): `(left, top, right, bottom)`, in fractions of the canvas if all are at most 1.
        width (`int`): Width of the canvas in pixels.
        height (`int`): Height of the canvas in pixels.

    Returns:
        `tuple[float, float, float, float]`: left, top, right and bottom; right and bottom may lie outside the canvas.

    Raises:
        ValueError: if the box is empty, outside the canvas, or neither in fractions nor in pixels.
    """
    left, top, right, bottom = box
    if 1 < max(box) < 2 and not all(float(value).is_integer() for value in box):
        raise ValueError(
            f"The box {tuple(box)} is neither in fractions of the canvas, which go from 0 to 1, nor in pixels. Cut it "
            "at 1."
        )
    if max(box) <= 1:
        left, right, top, bottom = left * width, right * width, top * height, bottom * height
    if not (0 <= left < right and 0 <= top < bottom and left < width and top < height):
        raise ValueError(
            f"The box {tuple(box)} does not lie on the canvas of {width} x {height} pixels (width x height). "
            "Boxes are (left, top, right, bottom) in pixels, or in fractions of the canvas from 0 to 1, with left < "
            "right and top < bottom."
        )
    return left, top, right, bottom
