"""Scales: one number, or one per block of a module."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any


def read_scale(owner: str, name: str, scale: Any, count: int, blocks: str) -> list[float]:
    """A scale as one number per block.

    Args:
        owner (`str`): The condition's class name, for errors.
        name (`str`): The argument's name, for errors.
        scale (`float` or `Sequence[float]`): One number for all blocks, or one each.
        count (`int`): Number of blocks.
        blocks (`str`): What the blocks are, for errors.

    Returns:
        `list[float]` of length `count`.

    Raises:
        TypeError: if it is neither a number nor a list of numbers.
        ValueError: if a number is not finite, or there are too many or too few.
    """
    several = isinstance(scale, Sequence) and not isinstance(scale, str)
    numbers = list(scale) if several else [scale] * count
    if not all(isinstance(number, Real) for number in numbers or [scale]):
        raise TypeError(f"`{name}` of {owner} is a number or a list of numbers, but {scale!r} came.")
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"`{name}` of {owner} has to be finite, but {scale!r} came.")
    if len(numbers) != count:
        raise ValueError(
            f"`{name}` of {owner} has {len(numbers)} numbers, but its module has {blocks}. Give one number for all, "
            f"or {count}: the double blocks first."
        )
    return [float(number) for number in numbers]
