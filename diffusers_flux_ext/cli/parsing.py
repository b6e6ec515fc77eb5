"""Values of the command line."""

import argparse
import math
from typing import NamedTuple


LARGEST_SIDE = 32768


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
    ordered = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
    if not separator or not text.strip() or not ordered:
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
    if not _is_count(value, 1, 10**9):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number of at least 1")
    return int(value)


def parse_size(value: str) -> tuple[int, int]:
    """Read `N` or `WIDTHxHEIGHT` in pixels.

    Args:
        value (`str`): One number for a square, or two.

    Returns:
        `tuple[int, int]`: width and height.

    Raises:
        argparse.ArgumentTypeError: if it is neither, below 16, or above 32768.
    """
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(_is_count(part, 16, LARGEST_SIDE) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{value!r} is not a size: give N or WIDTHxHEIGHT in pixels, from 16 to {LARGEST_SIDE}"
        )
    return int(parts[0]), int(parts[-1])


def parse_text_tokens(value: str) -> int:
    """Read a number of text tokens from 1 to 512, which is as long as FLUX.1's prompts get.

    Args:
        value (`str`): The number.

    Returns:
        `int`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    if not _is_count(value, 1, 512):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 1 to 512")
    return int(value)


def parse_seed(value: str) -> int:
    """Read a seed, a whole number from 0 to 2^63 - 1.

    Args:
        value (`str`): The number.

    Returns:
        `int`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    if not _is_count(value, 0, 2**63 - 1):
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number from 0 to {2**63 - 1}")
    return int(value)


def parse_scale(value: str) -> float:
    """Read a finite number of at least 0.

    Args:
        value (`str`): The number.

    Returns:
        `float`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    number = parse_number(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{value!r} is below 0")
    return number


def parse_share(value: str) -> float:
    """Read a number above 0 and up to 1.

    Args:
        value (`str`): The number.

    Returns:
        `float`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    number = parse_number(value)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not above 0 and at most 1")
    return number


def parse_gib(value: str) -> float:
    """Read a positive, finite number of GiB.

    Args:
        value (`str`): The number.

    Returns:
        `float`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    number = parse_number(value)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{value!r} is not a positive number of GiB")
    return number


def parse_number(value: str) -> float:
    """Read a finite number.

    Args:
        value (`str`): The number.

    Returns:
        `float`

    Raises:
        argparse.ArgumentTypeError: if it is not one.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{value!r} is not a finite number")
    return number


def _is_count(value: str, least: int, most: int) -> bool:
    # A long row of digits is refused before it becomes a number.
    return value.isascii() and value.isdigit() and len(value) <= 19 and least <= int(value) <= most
