"""Aspect buckets: which sizes an image is trained at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from .resizing import aspect, reference_size


Size = tuple[int, int]
"""Height and width in pixels."""

STEP = 16
"""Sides are multiples of a token, 16 pixels."""


class Sizes(Protocol):
    """A rule from an image's size to the sizes that it is trained at."""

    def sizes(self, height: int, width: int) -> list[Size]:
        """Return the sizes of an image.

        Args:
            height (`int`): The image's pixels.
            width (`int`): The image's pixels.

        Returns:
            `list[Size]`: at least one, without repetitions.

        Raises:
            ValueError: if the image is too small.
        """


@dataclass(frozen=True)
class FreeBuckets:
    """All sizes of about a given area, of which an image takes the nearest aspect ratio, at each resolution.

    Args:
        resolutions (`tuple[int, ...]`, defaults to `(1024,)`):
            Sides of squares whose area no size exceeds. An image is trained at all of them.
        step (`int`, defaults to 64): Sides are multiples of this, itself a multiple of 16.
        max_aspect (`float`, defaults to 3.0): The longest side over the shortest, at least 1.
        upscale (`bool`, defaults to `False`):
            Whether images are enlarged. Otherwise an image takes the resolutions that it reaches, or the lowest,
            for which it is enlarged, if it reaches none.

    Raises:
        ValueError: if an option is out of range.
    """

    resolutions: tuple[int, ...] = (1024,)
    step: int = 64
    max_aspect: float = 3.0
    upscale: bool = False

    def __post_init__(self) -> None:
        if self.step < STEP or self.step % STEP:
            raise ValueError(f"`step` of FreeBuckets must be a multiple of {STEP}, got {self.step}.")
        if not self.resolutions or min(self.resolutions) < self.step:
            raise ValueError(
                f"`resolutions` of FreeBuckets must be at least the `step`, {self.step} pixels, got "
                f"{self.resolutions}."
            )
        if not self.max_aspect >= 1:
            raise ValueError(f"`max_aspect` of FreeBuckets must be at least 1, got {self.max_aspect}.")

    @cached_property
    def buckets(self) -> tuple[tuple[Size, ...], ...]:
        """The sizes of each resolution, the lowest first."""
        return tuple(tuple(self._of_area(side)) for side in sorted(set(self.resolutions)))

    def _of_area(self, side: int) -> list[Size]:
        most = int(side * math.sqrt(self.max_aspect)) // self.step * self.step
        longest: dict[int, int] = {}
        for long in range(self.step, most + 1, self.step):
            short = min(side * side // long // self.step * self.step, long)
            if short >= self.step and long / short <= self.max_aspect:
                # Of one short side only the longest, so that no area is wasted.
                longest[short] = long
        return sorted({size for short, long in longest.items() for size in ((short, long), (long, short))})

    def sizes(self, height: int, width: int) -> list[Size]:
        """Return the nearest size of each resolution that the image reaches; see [`Sizes`]."""
        nearest = [nearest_size(each, height, width) for each in self.buckets]
        reached = [size for size in nearest if self.upscale or (size[0] <= height and size[1] <= width)]
        return list(dict.fromkeys(reached or nearest[:1]))


@dataclass(frozen=True)
class ListedBuckets:
    """Given sizes, of which an image takes the nearest aspect ratio.

    Args:
        listed (`Sequence[Size]`):
            Heights and widths in pixels, multiples of 16. Of several sizes of one aspect ratio, an image takes the
            largest that it reaches, or the smallest.

    Raises:
        ValueError: if there is none, or one is not a multiple of 16.
    """

    listed: Sequence[Size] = field(default=((1024, 1024),))

    def __post_init__(self) -> None:
        if not self.listed:
            raise ValueError("`listed` of ListedBuckets is empty. Give at least one (height, width).")
        for size in self.listed:
            if len(size) != 2 or any(side < STEP or side % STEP for side in size):
                raise ValueError(
                    f"`listed` of ListedBuckets must hold heights and widths that are multiples of {STEP}, got {size}."
                )

    def sizes(self, height: int, width: int) -> list[Size]:
        """Return the nearest size; see [`Sizes`]."""
        first = nearest_size(self.listed, height, width)
        same = sorted(size for size in self.listed if size[0] * first[1] == size[1] * first[0])
        reached = [size for size in same if size[0] <= height and size[1] <= width]
        return [tuple(reached[-1] if reached else same[0])]  # type: ignore[list-item]


@dataclass(frozen=True)
class ReferenceSizes:
    """The reference implementation's sizes: each image its own, shrunk to an area and never enlarged.

    Args:
        max_pixels (`int`, defaults to 1048576): The area.
    """

    max_pixels: int = 1024 * 1024

    def sizes(self, height: int, width: int) -> list[Size]:
        """Return the one size of an image; raise a `ValueError` if it is smaller than a token."""
        return [reference_size(height, width, self.max_pixels)]


def nearest_size(sizes: Sequence[Size], height: int, width: int) -> Size:
    """Return the size of the nearest aspect ratio, in logarithms; of equal ones the largest.

    Args:
        sizes (`Sequence[Size]`): Heights and widths.
        height (`int`): The image's pixels.
        width (`int`): The image's pixels.

    Returns:
        `Size`
    """
    wanted = aspect(height, width)
    return min(sizes, key=lambda size: (round(abs(aspect(*size) - wanted), 9), -size[0] * size[1]))
