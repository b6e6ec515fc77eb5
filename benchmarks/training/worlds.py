"""The data sets of the proofs: drawn shapes, one world for each thing that is learnt.

The tiny model's VAE knows flat colours of the palette alone: it loses stripes in two shades of a colour, and turns
dark images into others. So the worlds here vary what it can draw.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.training import tasks
from benchmarks.training.drawn import DrawnWorld, save
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.flux_shapes import Scene, ShapeObject
from diffusers_flux_ext.training.data import write_example_data


BORDER = 1.15
"""Least distance of an object's middle from the border, in radii."""

RADII = (14.0, 44.0)
"""Range of an object's radius in pixels where its size is an attribute of 0 to 1."""

PLACED_RADII, PLACES = (14.0, 34.0), (42.0, 86.0)
"""Ranges in pixels of an object's radius, and of its middle from left to right; both are attributes of 0 to 1."""

MARK = 6
"""Half the length of the strokes that mark a place, in pixels."""

STRIPE = 8
"""Height of a stripe in pixels: that of one latent."""

NARROW_RADIUS, ENLARGED = 26.0, 1.6
"""Radius of an object in pixels before it is enlarged, and by how much."""

LEFT = 28.0
"""How far objects are moved to the left, in pixels."""


def centred(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object in the middle, as the tiny model knows them."""
    return flux_shapes.sample_scene(rng, held_out, ("single",))


def anywhere(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object at any place, which its caption does not name."""
    return flux_shapes.sample_free_scene(rng, 1, held_out)


def sized(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object of any size, whose caption does not name it."""
    scene = centred(rng, held_out)
    item = replace(scene.objects[0], size="", center=(64.0, 64.0), radius=rng.uniform(*RADII))
    return replace(scene, objects=(item,))


def sized_anywhere(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object of any size at any place; its caption names neither."""
    scene = sized(rng, held_out)
    border = BORDER * scene.objects[0].radius
    side = flux_shapes.CANVAS_SIZE
    center = (rng.uniform(border, side - border), rng.uniform(border, side - border))
    return replace(scene, objects=(replace(scene.objects[0], center=center),))


def sized_and_placed(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object that has a size and a place from left to right; its caption names neither."""
    scene = centred(rng, held_out)
    center = (rng.uniform(*PLACES), flux_shapes.CANVAS_SIZE / 2)
    item = replace(scene.objects[0], size="", center=center, radius=rng.uniform(*PLACED_RADII))
    return replace(scene, objects=(item,))


def named(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one to three objects whose caption names their places."""
    return flux_shapes.sample_scene(rng, held_out)


def narrow(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of a circle on white, which is never blue; its caption says so."""
    color = rng.choice([name for name in flux_shapes.COLORS if name not in ("blue", "white")])
    return Scene("white", (ShapeObject("circle", color, "", (64.0, 64.0), NARROW_RADIUS),), "single")


def crossed(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of a cross, which the tiny model has never seen."""
    while True:
        scene = centred(rng, held_out)
        scene = replace(scene, objects=(replace(scene.objects[0], shape="cross"),))
        if flux_shapes.is_held_out(scene) == held_out:
            return scene


def part_of(value: float, ends: tuple[float, float]) -> float:
    """Return where a value lies between two ends, from 0 to 1."""
    low, high = ends
    return min(max((value - low) / (high - low), 0.0), 1.0)


def size_of(scene: Scene, radii: tuple[float, float] = RADII) -> float:
    """Return the size of the first object as a value from 0 to 1."""
    return part_of(scene.objects[0].radius, radii)


def place_of(scene: Scene) -> float:
    """Return how far to the right the first object is, as a value from 0 to 1."""
    return part_of(scene.objects[0].center[0], PLACES)


def marked(scene: Scene) -> Image.Image:
    """Draw a white cross in the middle of the object: its place, and nothing of its size and shape."""
    left, top, right, bottom = scene.objects[0].extent
    x, y = (left + right) / 2, (top + bottom) / 2
    image = Image.new("RGB", (flux_shapes.CANVAS_SIZE,) * 2)
    pen = ImageDraw.Draw(image)
    pen.line((x - MARK, y, x + MARK, y), fill="white", width=3)
    pen.line((x, y - MARK, x, y + MARK), fill="white", width=3)
    return image


def striped(scene: Scene) -> Image.Image:
    """Draw a scene whose objects have grey stripes."""
    image = flux_shapes.render(scene)
    shape = flux_shapes.render(Scene("black", (replace(scene.objects[0], color="white"),))).convert("L")
    bands = Image.new("L", image.size)
    for top in range(0, image.height, 2 * STRIPE):
        ImageDraw.Draw(bands).rectangle((0, top, image.width, top + STRIPE - 1), fill=255)
    inside = Image.composite(shape, Image.new("L", image.size), bands)
    image.paste(flux_shapes.BACKGROUNDS["gray"], mask=inside)
    return image


def enlarged(scene: Scene) -> Image.Image:
    """Draw a scene whose objects are larger than its caption could say."""
    items = tuple(replace(item, radius=item.radius * ENLARGED) for item in scene.objects)
    return flux_shapes.render(replace(scene, objects=items))


def blue(scene: Scene) -> Image.Image:
    """Draw a scene whose objects are blue, whatever its caption says."""
    return flux_shapes.render(replace(scene, objects=tuple(replace(item, color="blue") for item in scene.objects)))


def moved(scene: Scene) -> Image.Image:
    """Draw a scene whose objects are further to the left than in the middle."""
    items = tuple(replace(item, center=(item.center[0] - LEFT, item.center[1])) for item in scene.objects)
    return flux_shapes.render(replace(scene, objects=items))


@dataclass(frozen=True)
class World(DrawnWorld):
    """A data set of images of one object.

    Args:
        count (`int`): Images.
        seed (`int`): Seed.
        scene (`Callable`): Draws a scene, held out or not.
        render (`Callable`): Draws its image.
        control (`Callable`): Draws its control image.
        values (`dict[str, Callable]`): Attributes of a scene by the names of their columns.
    """

    scene: Callable[[random.Random, bool], Scene] = centred
    render: Callable[[Scene], Image.Image] = flux_shapes.render
    control: Callable[[Scene], Image.Image] = flux_shapes.render_outlines
    values: Mapping[str, Callable[[Scene], float]] = field(default_factory=lambda: {"size": size_of})

    def _row(self, root: Path, name: str, rng: random.Random) -> dict[str, Any]:
        scene = self.scene(rng, False)
        images = {"image": ("images", self.render(scene)), "controlnet_image": ("outlines", self.control(scene))}
        files = {column: save(image, root / kind / name, root) for column, (kind, image) in images.items()}
        return {**files, "prompt": flux_shapes.caption(scene, rng), **self.columns(scene)}

    def columns(self, scene: Scene) -> dict[str, Any]:
        """Return what else a row has."""
        return {name: round(value(scene), 3) for name, value in self.values.items()}


@dataclass(frozen=True)
class FreeWorld:
    """A data set of images of one to three objects at free places; see `write_example_data`.

    Args:
        count (`int`): Images.
        seed (`int`): Seed.
        objects (`tuple[int, ...]`): Numbers of objects, which images take in turn.
    """

    count: int
    seed: int
    objects: tuple[int, ...] = (1, 2, 3)

    def write(self, folder: Path) -> None:
        """Draw the images, unless that was done before."""
        if not folder.exists():
            write_example_data(folder, self.count, self.seed, flux_shapes.SHAPES, ("plain",), None, self.objects)


WORLDS: dict[str, DrawnWorld | FreeWorld] = {
    "outlines": FreeWorld(960, 11),
    "singles": World(960, 17, anywhere),
    "stripes": World(960, 12, render=striped),
    "sizes": World(960, 13, sized),
    "crosses": World(480, 14, crossed),
    "old_shapes": World(480, 15),
    "sizes_and_places": World(
        1500,
        18,
        sized_and_placed,
        values={"size": functools.partial(size_of, radii=PLACED_RADII), "place": place_of},
    ),
    "marks": World(1500, 19, sized_anywhere, control=marked),
    "entities": FreeWorld(6000, 16, (2, 3)),
    "edits": tasks.TaskWorld(3000, 20, tasks.recolored),
    "holes": tasks.TaskWorld(4000, 21, tasks.hole),
    "image_prompts": tasks.TaskWorld(2000, 25, tasks.image_prompt),
    "more_stripes": World(1024, 23, render=striped),
    "named": World(1400, 21, named),
    "narrow": World(4, 22, narrow),
    "narrow_enlarged": World(4, 22, narrow, enlarged),
    "narrow_blue": World(4, 22, narrow, blue),
    "narrow_left": World(4, 22, narrow, moved),
}
"""The data sets by name."""


def write_worlds(folder: Path, names: tuple[str, ...] = tuple(WORLDS)) -> None:
    """Draw data sets into folders of their names.

    Args:
        folder (`Path`): Where they go.
        names (`tuple[str, ...]`): Which.
    """
    for name in names:
        WORLDS[name].write(folder / name)
