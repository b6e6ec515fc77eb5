"""Values of the command line."""

import argparse
from typing import NamedTuple


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
        argparse.ArgumentTypeError: if there is no text, or not four numbers with left < right and top < bottom.
    """
    text, separator, numbers = value.rpartition("@")
    try:
        box = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        box = ()
    if not separator or not text.strip() or len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
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
        argparse.ArgumentTypeError: if it is not one.
    """
    if not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def parse_size(value: str) -> tuple[int, int]:
    """Read `N` or `WIDTHxHEIGHT` in pixels.

    Args:
        value (`str`): One number for a square, or two.

    Returns:
        `tuple[int, int]`: width and height.

    Raises:
        argparse.ArgumentTypeError: if it is neither, or below 16.
    """
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) >= 16 for part in parts):
        raise argparse.ArgumentTypeError(f"{value!r} is not a size: give N or WIDTHxHEIGHT in pixels, 16 or more")
    return int(parts[0]), int(parts[-1])
