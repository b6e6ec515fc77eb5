"""Colours, shapes and sizes of the world of shapes."""

import numpy as np


COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "green": (30, 160, 60),
    "blue": (35, 80, 220),
    "yellow": (250, 215, 40),
    "orange": (245, 130, 25),
    "purple": (130, 50, 170),
    "black": (15, 15, 20),
    "white": (250, 250, 250),
}
"""RGB of the colours that an object can have."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": COLORS["white"],
    "black": COLORS["black"],
    "gray": (150, 150, 150),
    "yellow": COLORS["yellow"],
    "blue": COLORS["blue"],
    "green": COLORS["green"],
}
"""RGB of the colours that a background can have."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
"""Shapes of objects that are drawn where nothing else is asked for."""

ALL_SHAPES: tuple[str, ...] = (*SHAPES, "cross")
"""All shapes of objects."""

STYLES: tuple[str, ...] = ("plain", "striped")
"""How objects are filled: in one colour, or with horizontal stripes in two shades of it."""

SIZES: dict[str, float] = {"small": 0.7, "": 1.0, "big": 1.32}
"""Size words and the factors by which they scale an object; no word is the middle size."""

CANVAS_SIZE = 128
"""Width and height of every image in pixels."""

PALETTE: dict[str, tuple[int, int, int]] = {**COLORS, **BACKGROUNDS}
"""Every colour that an image can contain."""

_SHADES: dict[str, float] = {"yellow": 0.87, "white": 0.85, "black": 1.2}

_NAMES = list(PALETTE)
_VALUES = np.array([PALETTE[name] for name in _NAMES], dtype=float)


def shade(color: str) -> tuple[int, int, int]:
    """Return the second shade of a striped object: darker, for black lighter, and still nearest to its colour."""
    factor = _SHADES.get(color, 0.82)
    mixed = (value * factor if factor < 1 else value + (255 - value) * (factor - 1) for value in COLORS[color])
    red, green, blue = (round(value) for value in mixed)
    return red, green, blue


def check_choice(what: str, value: str, choices: object) -> None:
    """Raise a `ValueError` that lists the choices if `value` is not one of them."""
    known = list(choices)  # type: ignore[call-overload]
    if value not in known:
        raise ValueError(f"There is no {what} {value!r} in the world of shapes. Choose one of {known}.")


def count_colors(pixels: np.ndarray, max_distance: float = 90.0) -> dict[str, int]:
    """Count the pixels that are nearest to each colour of the palette.

    Args:
        pixels (`np.ndarray` of shape `(count, 3)`): RGB in [0, 255].
        max_distance (`float`, defaults to 90): Pixels farther than this from every colour are not counted.

    Returns:
        `dict[str, int]`: name to count, for all colours of the palette.
    """
    squared = ((pixels[:, None, :].astype(float) - _VALUES[None]) ** 2).sum(axis=-1)
    near = np.sqrt(squared.min(axis=1)) < max_distance
    counts = np.bincount(squared.argmin(axis=1)[near], minlength=len(_NAMES))
    return dict(zip(_NAMES, counts.tolist()))


def main_color(pixels: np.ndarray) -> tuple[str, float]:
    """Return the colour that most of the pixels have.

    Args:
        pixels (`np.ndarray` of shape `(count, 3)`): RGB in [0, 255], at least one pixel.

    Returns:
        `tuple[str, float]`: its name, and the share of the pixels that have it.
    """
    counts = count_colors(pixels)
    name = max(counts, key=counts.__getitem__)
    return name, counts[name] / len(pixels)
