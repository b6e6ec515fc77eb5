"""What is asked for with a text and given images: edits.

Held out are combinations of the object's colour and shape with the background of the image that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.training.drawn import DrawnWorld, save
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.flux_shapes import Scene


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
