"""What is asked for with a text and given images: edits, objects of images, and holes to fill.

Held out are combinations of the object's colour and shape with the background of the image that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.training.drawn import DrawnWorld, save
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.flux_shapes import Scene, ShapeObject


MARGIN = (4.0, 12.0)
"""Range of the distance in pixels between an object and the sides of the hole that it is to fill."""


@dataclass(frozen=True)
class Task:
    """An image that is asked for.

    Args:
        scene (`Scene`): What it should show; the first object is the one that is asked for.
        prompt (`str`): The text.
        given (`Mapping[str, PIL.Image.Image]`): Given images by the names of their columns.
    """

    scene: Scene
    prompt: str
    given: Mapping[str, Image.Image]


@dataclass(frozen=True)
class TaskWorld(DrawnWorld):
    """A data set of images that are asked for with given images.

    Args:
        count (`int`): Images.
        seed (`int`): Seed.
        task (`Callable`): Draws a task, held out or not.
    """

    task: Callable[[random.Random, bool], Task]

    def _row(self, root: Path, name: str, rng: random.Random) -> dict[str, Any]:
        task = self.task(rng, False)
        images = {"image": flux_shapes.render(task.scene), **task.given}
        files = {column: save(image, root / column / name, root) for column, image in images.items()}
        return {**files, "prompt": task.prompt}


def recolored(rng: random.Random, held_out: bool) -> Task:
    """Ask for an image with its object in another colour: the text names nothing but that colour."""
    scene = flux_shapes.sample_free_scene(rng, 1, held_out)
    (item,) = scene.objects
    others = [color for color in flux_shapes.COLORS if color not in (item.color, scene.background)]
    before = replace(scene, objects=(replace(item, color=rng.choice(others)),))
    return Task(scene, f"make it {item.color}", {"kontext_images": flux_shapes.render(before)})


def image_prompt(rng: random.Random, held_out: bool) -> Task:
    """Ask for the object of a given image: the text names nothing but the background."""
    scene = flux_shapes.sample_scene(rng, held_out, ("single",))
    return Task(scene, flux_shapes.background_caption(scene), {"image_prompt": flux_shapes.render(scene)})


def hole(rng: random.Random, held_out: bool) -> Task:
    """Ask for an object in a hole, and the background; the text does not name the object beside the hole."""
    while True:
        scene = flux_shapes.sample_free_scene(rng, 2)
        item, other = scene.objects
        asked, box = replace(scene, objects=(item,)), _around(item, rng)
        if flux_shapes.is_held_out(asked) == held_out and not _overlap(box, other.extent):
            break
    mask = Image.new("L", (flux_shapes.CANVAS_SIZE,) * 2)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    image = flux_shapes.render(replace(scene, objects=(other,)))
    given = {"flux_fill_image": image, "flux_fill_mask": mask}
    return Task(scene, flux_shapes.caption(asked, rng), given)


def _around(item: ShapeObject, rng: random.Random) -> tuple[float, float, float, float]:
    left, top, right, bottom = item.extent
    far = [rng.uniform(*MARGIN) for _ in range(4)]
    return round(left - far[0]), round(top - far[1]), round(right + far[2]), round(bottom + far[3])


def _overlap(box: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return box[0] <= other[2] and other[0] <= box[2] and box[1] <= other[3] and other[1] <= box[3]
