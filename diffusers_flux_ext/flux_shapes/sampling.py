"""Seeded scenes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .palette import ALL_SHAPES, BACKGROUNDS, CANVAS_SIZE, COLORS, SHAPES, SIZES, STYLES, check_choice
from .scene import FREE, PLACES, Scene, ShapeObject, is_held_out


LAYOUT_WEIGHTS: dict[str, float] = {"single": 0.35, "pos": 0.2, "two": 0.35, "three": 0.1}
"""How often `sample_scene` draws each named layout."""

FREE_RADII: dict[int, tuple[float, float]] = {1: (18.0, 30.0), 2: (16.0, 28.0), 3: (15.0, 21.0)}
"""Range of the radius in pixels in free scenes, by the number of objects."""

NOMINAL_RADIUS: dict[int, float] = {1: 27.0, 2: 21.0, 3: 15.0}
"""Radius in pixels of an object of the middle size in named layouts, by the number of objects."""

ROW_X: dict[str, float] = {"left": 24.0, "center": 64.0, "right": 104.0}
"""Horizontal centres of the layout `"three"` in pixels."""

_MARGIN, _GAP, _MAX_REACH = 3.0, 4.0, 1.12


def sample_scene(
    rng: random.Random, held_out: bool | None = None, layouts: Sequence[str] = tuple(LAYOUT_WEIGHTS)
) -> Scene:
    """Sample a scene of a named layout.

    Args:
        rng (`random.Random`): Source of all randomness.
        held_out (`bool`, *optional*): Take only scenes that are, or only ones that are not, held out.
        layouts (`Sequence[str]`, defaults to all named ones): Layouts to draw from.

    Returns:
        `Scene`

    Raises:
        ValueError: if `layouts` is empty or has an unknown name.
    """
    if not layouts:
        raise ValueError(f"`layouts` is empty. Give some of {list(LAYOUT_WEIGHTS)}.")
    for layout in layouts:
        check_choice("named layout", layout, LAYOUT_WEIGHTS)
    weights = [LAYOUT_WEIGHTS[layout] for layout in layouts]
    while True:
        scene = _named_scene(rng, rng.choices(layouts, weights)[0])
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def sample_free_scene(
    rng: random.Random,
    num_objects: int,
    held_out: bool | None = None,
    shapes: Sequence[str] = SHAPES,
    styles: Sequence[str] = ("plain",),
    brightness: tuple[float, float] | None = None,
) -> Scene:
    """Sample a scene of objects at free places that do not overlap.

    Args:
        rng (`random.Random`): Source of all randomness.
        num_objects (`int`): 1, 2 or 3.
        held_out (`bool`, *optional*): Take only scenes that are, or only ones that are not, held out.
        shapes (`Sequence[str]`, defaults to `SHAPES`): Shapes to draw from, of `ALL_SHAPES`.
        styles (`Sequence[str]`, defaults to `("plain",)`): Styles to draw from, of `STYLES`.
        brightness (`tuple[float, float]`, *optional*): Range of the scene's brightness; 1 by default.

    Returns:
        `Scene`

    Raises:
        ValueError: if `num_objects` is not 1, 2 or 3, or a shape or style is unknown.
    """
    for what, names, known in (("shape", shapes, ALL_SHAPES), ("style", styles, STYLES)):
        for name in names or ("",):
            check_choice(what, name, known)
    if num_objects not in FREE_RADII:
        raise ValueError(f"Free scenes have {list(FREE_RADII)} objects, but {num_objects} were asked for.")
    while True:
        scene = _free_scene(rng, num_objects, shapes, styles, brightness)
        if scene is not None and (held_out is None or is_held_out(scene) == held_out):
            return scene


def held_out_entity_scenes(count: int = 64, seed: int = 777) -> list[Scene]:
    """Return the free scenes of two and three objects, in turn, that entity control is scored on.

    Args:
        count (`int`, defaults to 64): Number of scenes.
        seed (`int`, defaults to 777): Seed.

    Returns:
        `list[Scene]`
    """
    rng = random.Random(seed)
    return [sample_free_scene(rng, 2 + index % 2, held_out=True) for index in range(count)]


def iterate_scenes(seed: int, held_out: bool | None = False) -> Iterator[Scene]:
    """Yield scenes of the named layouts without end.

    Args:
        seed (`int`): Seed.
        held_out (`bool`, *optional*, defaults to `False`): As for `sample_scene`.

    Returns:
        `Iterator[Scene]`
    """
    rng = random.Random(seed)
    while True:
        yield sample_scene(rng, held_out)


def _background_and_colors(rng: random.Random) -> tuple[str, list[str]]:
    background = rng.choice(list(BACKGROUNDS))
    return background, [color for color in COLORS if color != background]


def _places(rng: random.Random, layout: str) -> tuple[str, ...]:
    if layout == "single":
        return ("center",)
    if layout == "pos":
        return (rng.choice(["left", "right", "top", "bottom"]),)
    return rng.choice([("left", "right"), ("top", "bottom")]) if layout == "two" else ("left", "center", "right")


def _named_scene(rng: random.Random, layout: str) -> Scene:
    background, colors = _background_and_colors(rng)
    places = _places(rng, layout)
    return Scene(background, tuple(_placed(rng, place, len(places), colors) for place in places), layout)


def _placed(rng: random.Random, place: str, count: int, colors: list[str]) -> ShapeObject:
    shape, color = rng.choice(SHAPES), rng.choice(colors)
    size = rng.choices(list(SIZES), [0.25, 0.5, 0.25])[0]
    jitter = 4.0 if count < 3 else 2.4
    x, y = (ROW_X[place], PLACES[place][1]) if count == 3 else PLACES[place]
    radius = NOMINAL_RADIUS[count] * SIZES[size] * (0.85 if count == 1 and place != "center" else 1.0)
    center = (x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter))
    return ShapeObject(shape, color, size, center, radius * rng.uniform(0.94, 1.06), place)


def _free_scene(
    rng: random.Random,
    count: int,
    shapes: Sequence[str],
    styles: Sequence[str],
    brightness: tuple[float, float] | None,
) -> Scene | None:
    background, colors = _background_and_colors(rng)
    spots: list[tuple[float, float, float]] = []
    for _ in range(count):
        spot = _free_spot(rng, FREE_RADII[count], spots)
        if spot is None:
            return None
        spots.append(spot)
    objects = [ShapeObject(rng.choice(shapes), rng.choice(colors), "", (x, y), radius, FREE) for x, y, radius in spots]
    # Drawn last, and only where there is a choice, so that scenes of earlier seeds stay what they were.
    if len(styles) > 1 or "plain" not in styles:
        objects = [replace(item, style=rng.choice(styles)) for item in objects]
    return Scene(background, tuple(objects), FREE, 1.0 if brightness is None else rng.uniform(*brightness))


def _free_spot(
    rng: random.Random, radii: tuple[float, float], taken: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    for _ in range(40):
        radius = rng.uniform(*radii)
        border = radius * _MAX_REACH + _MARGIN
        x, y = rng.uniform(border, CANVAS_SIZE - border), rng.uniform(border, CANVAS_SIZE - border)
        if all(max(abs(x - u), abs(y - v)) > _MAX_REACH * (radius + r) + _GAP for u, v, r in taken):
            return x, y, radius
    return None
