"""Values of the command line."""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

from ..checkpoints.messages import shorten


# Far more than a model can draw; anything larger is a typo that would be computed for hours.
LARGEST_SIDE = 16384
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
    ordered = len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]
    if not separator or not text.strip() or not ordered:
        raise argparse.ArgumentTypeError(
            f"{value!r} is not TEXT@LEFT,TOP,RIGHT,BOTTOM with LEFT < RIGHT and TOP < BOTTOM, for example "
            f"'a red circle@0.1,0.2,0.5,0.8'"
        )
    return Entity(text.strip(), box)


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
    if len(parts) > 2 or not all(_is_count(part, 16, LARGEST_SIDE) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{shorten(value)!r} is not a size: give N or WIDTHxHEIGHT in pixels, from 16 to {LARGEST_SIDE}"
        )
    return int(parts[0]), int(parts[-1])


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`, both included."""

    def parse(value: str) -> int:
        if not _is_count(value, least, most):
            raise argparse.ArgumentTypeError(f"{shorten(value)!r} is not a whole number from {least} to {most}")
        return int(value)

    return parse


def number(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """Return a parser of finite numbers from `least` to `most`, both included, and above `above`."""
    bounds = {"at least": least, "above": above, "at most": most}
    words = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))

    def parse(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and least <= found <= most and found > above):
            raise argparse.ArgumentTypeError(
                " ".join(filter(None, [f"{shorten(value)!r} is not a finite number", words]))
            )
        return found

    return parse


def _is_count(value: str, least: int, most: int) -> bool:
    # A long row of digits is refused before it becomes a number.
    return value.isascii() and value.isdigit() and len(value) <= 19 and least <= int(value) <= most


parse_positive = whole_number(1, LARGEST_COUNT)
parse_seed = whole_number(0, 2**63 - 1)
# The longest prompt of FLUX.1.
parse_text_tokens = whole_number(1, 512)
parse_number = number()
parse_scale = number(least=0)
parse_share = number(above=0, most=1)
parse_gib = number(above=0)
