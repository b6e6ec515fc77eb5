"""Images as prompts: how often the object that is drawn is that of the given image, which no text names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import SiglipVisionModel

from benchmarks.training import tower
from benchmarks.training.drawing import SCENES_SEED, Measured, draw, load_pipeline
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof
from benchmarks.training.tasks import Task, image_prompt
from diffusers_flux_ext import flux_shapes


Make = Callable[[list[list[Image.Image]]], Any]
"""Maps a list of images for each prompt to a condition."""

CHANCES = 3
"""How many times as often as by chance colour and shape should both be right."""


def followed(image: np.ndarray, scene: flux_shapes.Scene) -> list[float]:
    """Return whether colour and shape of the object, and the background, are those of a scene.

    Args:
        image (`np.ndarray` of shape `(128, 128, 3)`): The image.
        scene (`Scene`): What it should show: one object.

    Returns:
        `list[float]`: the three, each 0 or 1.
    """
    score = flux_shapes.score_scene(image, scene)
    (item,) = score.objects
    return [float(item.color), float(item.shape), float(score.background)]


def shares_alike(asked: Sequence[Task]) -> list[float]:
    """Return for each item the share of the others whose object has its colour and shape."""
    kinds = [(task.scene.objects[0].color, task.scene.objects[0].shape) for task in asked]
    return [(kinds.count(kind) - 1) / (len(kinds) - 1) for kind in kinds]


def image_prompt_proof(name: str, title: str, make: Callable[[Path, Any], Make]) -> Proof:
    """Return the proof of a module that takes images as prompts, trained from scratch.

    Args:
        name (`str`): Name of the result; the recipe is `tiny_` and this.
        title (`str`): What is trained, in words.
        make (`Callable`): Maps the folder of the exported files and the tower to what makes conditions.

    Returns:
        `Proof`
    """
    recipe = f"tiny_{name}"

    def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
        encoder = SiglipVisionModel.from_pretrained(folders[tower.FOLDER])
        return score_image_prompts(make(folders[recipe], encoder), measured, items)

    return Proof(name, title, (recipe,), ("image_prompts",), score, {tower.FOLDER: tower.write_tower})


def score_image_prompts(make: Make, measured: Measured, items: int) -> list[Bound]:
    """Compare what is drawn with the item's image, with another item's, and with none, from equal noise.

    Args:
        make (`Callable`): Maps a list of images for each prompt to a condition.
        measured (`Measured`): What is measured.
        items (`int`): Number of items.

    Returns:
        `list[Bound]`
    """
    pipe, rng = load_pipeline(), random.Random(SCENES_SEED)
    asked = [image_prompt(rng, True) for _ in range(items)]

    def run(variant: str, shift: int | None = None) -> np.ndarray:
        def drawn(part: Sequence[int]) -> list[np.ndarray]:
            conditions = []
            if shift is not None:
                conditions = [make([[asked[(index + shift) % items].given["image_prompt"]] for index in part])]
            return draw(pipe, [asked[index].prompt for index in part], part, conditions=conditions)

        return np.array(measured(variant, items, drawn, lambda index, image: followed(image, asked[index].scene)))

    own, others, without = run("own", 0), run("others", 1), run("without")
    alike = interval(shares_alike(asked))
    chance = max(alike["value"], float(others[:, :2].min(axis=1).mean()))
    return [
        Bound("colour and shape both of the image", _both(own), low=CHANCES * chance, unit="%"),
        *_each("of the image", own),
        Bound("background of the text", interval(own[:, 2].tolist()), unit="%"),
        Bound("both of this item's image, with another item's", _both(others), unit="%"),
        *_each("of this item's image, with another item's", others),
        Bound("both of the image, without an image", _both(without), unit="%"),
        *_each("of the image, without an image", without),
        Bound("both, by chance: other items that have the same", alike, unit="%"),
    ]


def _both(rows: np.ndarray) -> dict[str, float]:
    return interval(rows[:, :2].min(axis=1).tolist())


def _each(what: str, rows: np.ndarray) -> list[Bound]:
    names = ("colour", "shape")
    return [Bound(f"{name} {what}", interval(rows[:, place].tolist()), unit="%") for place, name in enumerate(names)]
