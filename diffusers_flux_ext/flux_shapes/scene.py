"""What an image of the world of shapes shows."""

import zlib
from dataclasses import dataclass

from .palette import ALL_SHAPES, BACKGROUNDS, CANVAS_SIZE, COLORS, SIZES, STYLES, check_choice


PLACES: dict[str, tuple[float, float]] = {
    "center": (64.0, 64.0),
    "left": (34.0, 64.0),
    "right": (94.0, 64.0),
    "top": (64.0, 34.0),
    "bottom": (64.0, 94.0),
}
"""Named places of an object and their `(x, y)` in pixels."""

FREE = "free"
"""Place and layout of objects that stand anywhere."""

LAYOUTS: tuple[str, ...] = ("single", "pos", "two", "three", FREE)
"""One centred object, one elsewhere, two beside or above each other, three in a row, one to three anywhere."""

# Reach beyond the centre in radii: left, top, right, bottom.
_REACH = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.9, 0.9, 0.9, 0.9),
    "triangle": (1.0, 1.0, 1.0, 0.8),
    "star": (1.066, 1.06, 1.066, 0.967),
    "cross": (1.0, 1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class ShapeObject:
    """One object.

    Args:
        shape (`str`): One of `ALL_SHAPES`.
        color (`str`): One of `COLORS`.
        size (`str`): One of `SIZES`: the word that captions use; the extent follows from `radius` alone.
        center (`tuple[float, float]`): `(x, y)` in pixels.
        radius (`float`): Nominal half extent in pixels.
        place (`str`, defaults to `"free"`): One of `PLACES`, or `"free"`.
        style (`str`, defaults to `"plain"`): One of `STYLES`.

    Raises:
        ValueError: if a name is unknown, the radius is not positive or the centre is outside the image.
    """

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    radius: float
    place: str = FREE
    style: str = "plain"

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, ALL_SHAPES)
        check_choice("style", self.style, STYLES)
        check_choice("colour", self.color, COLORS)
        check_choice("size", self.size, SIZES)
        check_choice("place", self.place, [*PLACES, FREE])
        if not 0 < self.radius <= CANVAS_SIZE / 2:
            raise ValueError(f"`radius` must be in (0, {CANVAS_SIZE // 2}] pixels, got {self.radius}.")
        if not all(0 <= value <= CANVAS_SIZE for value in self.center):
            raise ValueError(f"`center` must be in [0, {CANVAS_SIZE}] pixels, got {self.center}.")

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The smallest box `(left, top, right, bottom)` around the object in pixels, maybe beyond the image."""
        left, top, right, bottom = (reach * self.radius for reach in _REACH[self.shape])
        x, y = self.center
        return x - left, y - top, x + right, y + bottom


@dataclass(frozen=True)
class Scene:
    """An image's contents.

    Args:
        background (`str`): One of `BACKGROUNDS`.
        objects (`tuple[ShapeObject, ...]`): The objects; none has the background's colour.
        layout (`str`, defaults to `"free"`): One of `LAYOUTS`.
        brightness (`float`, defaults to 1.0): Factor of all colours, in [0.2, 1].

    Raises:
        ValueError: if a name is unknown, the brightness out of range, there is no object, or an object has the
            background's colour.
    """

    background: str
    objects: tuple[ShapeObject, ...]
    layout: str = FREE
    brightness: float = 1.0

    def __post_init__(self) -> None:
        check_choice("background", self.background, BACKGROUNDS)
        check_choice("layout", self.layout, LAYOUTS)
        if not 0.2 <= self.brightness <= 1:
            raise ValueError(f"The brightness of a scene must be in [0.2, 1], got {self.brightness}.")
        if not self.objects:
            raise ValueError("A scene needs at least one object, but `objects` is empty.")
        if any(item.color == self.background for item in self.objects):
            raise ValueError(f"An object in the background's colour {self.background!r} could not be seen.")


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's combination of colours, shapes, places and background is kept from training.

    About one combination in eight is; free scenes count as the same combination in any order and at any position.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `bool`
    """
    objects = [(item.color, item.shape, item.place) for item in scene.objects]
    if scene.layout == FREE:
        objects.sort()
    identity = (scene.layout, tuple(objects), scene.background)
    return zlib.crc32(repr(identity).encode()) % 8 == 0
