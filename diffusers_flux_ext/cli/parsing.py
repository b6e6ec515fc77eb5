"""Values of the command line."""

import argparse
import math
from typing import NamedTuple

from ..checkpoints.messages import shorten


# Far more than a model can draw; what is larger is a slip of the hand, and would be computed for hours.
LARGEST_SIZE = 16384
LARGEST_COUNT = 10**6


class Entity(NamedTuple):
    """An entity's text and its box `(left, top, right, bottom)`."""

    text: str
    box: tuple[float, ...]


def parse_entity(value: str) -> Entity:
    """Read `text@left,top,right,bottom`.

    Args:
        value (`str`): The text may hold further `@`; the box's numbers are pixels, or fractions up to 1.

    Returns:
        `Entity`

    Raises:
        argparse.ArgumentTypeError: if there is no text, or not four finite numbers with left < right and top < bottom.
    """
    text, separator, numbers = value.rpartition("@")
    try:
        box = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        box = ()
    is_box = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
    if not separator or not text.strip() or not is_box:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not TEXT@LEFT,TOP,RIGHT,BOTTOM with LEFT < RIGHT and TOP < BOTTOM, for example "
            f"'a red circle@0.1,0.2,0.5,0.8'"
        )
    return Entity(text.strip(), box)


def parse_positive(value: str) -> int:
    """Read a whole number of at least 1.

    Args:
        value (`str`): The number.

    Returns:
        `int`

    Raises:
        argparse.ArgumentTypeError: if it is not one, or above a million.
    """
    if not _is_whole(value, 1, LARGEST_COUNT):
        raise argparse.ArgumentTypeError(f"{shorten(value)!r} is not a whole number from 1 to {LARGEST_COUNT}")
    return int(value)


def _is_whole(value: str, least: int, most: int) -> bool:
    # Digits of other scripts are decimal, too, and Python refuses to read thousands of them.
    return value.isascii() and value.isdecimal() and len(value) < 20 and least <= int(value) <= most


def parse_size(value: str) -> tuple[int, int]:
    """Read `N` or `WIDTHxHEIGHT` in pixels.

    Args:
        value (`str`): One number for a square, or two.

    Returns:
        `tuple[int, int]`: width and height.

    Raises:
        argparse.ArgumentTypeError: if it is neither, below 16, or above 16384.
    """
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(_is_whole(part, 16, LARGEST_SIZE) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{shorten(value)!r} is not a size: give N or WIDTHxHEIGHT in pixels, 16 to {LARGEST_SIZE}"
        )
    return int(parts[0]), int(parts[-1])
