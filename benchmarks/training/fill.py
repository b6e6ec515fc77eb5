"""The tiny model becomes a Fill model: it draws what the text asks for in a hole, and all else as it is given.

python -m benchmarks.training.fill --work proofs
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.drawing import BATCH, SCENES_SEED, Measured, draw, load_pipeline
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.size import through_vae
from benchmarks.training.tasks import Task, hole
from diffusers_flux_ext import FillMask, flux_shapes


RECIPE = "tiny_fill"
ENOUGH, ROUND_TRIPS = 0.7, 1.2
IMAGE, MASK = "flux_fill_image", "flux_fill_mask"


def inside(image: np.ndarray, task: Task) -> list[float]:
    """Return whether shape and colour of the object in the hole are as asked for.

    Args:
        image (`np.ndarray` of shape `(128, 128, 3)`): The image.
        task (`Task`): Of [`hole`].

    Returns:
        `list[float]`: the two, each 0 or 1.
    """
    asked = replace(task.scene, objects=task.scene.objects[:1])
    (found,) = flux_shapes.score_entities(image, asked, [task.given[MASK]])
    return [float(found.shape), float(found.color)]


def error_outside(image: np.ndarray, task: Task) -> float:
    """Return the mean absolute difference from the given image outside the hole, of 1.

    Args:
        image (`np.ndarray` of shape `(128, 128, 3)`): The image.
        task (`Task`): Of [`hole`].

    Returns:
        `float`
    """
    outside = np.asarray(task.given[MASK]) == 0
    return float(np.abs(image - np.asarray(task.given[IMAGE]) / 255)[outside].mean())


def round_trips(asked: Sequence[Task]) -> list[float]:
    """Return the error outside the hole of each given image that only went through the VAE."""
    images = np.stack([np.asarray(task.given[IMAGE]) for task in asked])
    parts = [through_vae(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return [error_outside(image, task) for image, task in zip(np.concatenate(parts), asked, strict=True)]


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare holes of the item's image with those of another one, and with the base model; see [`Proof`]."""
    rng = random.Random(SCENES_SEED)
    asked = [hole(rng, True) for _ in range(items)]

    def run(variant: str, pipe: Any, shift: int | None = None) -> np.ndarray:
        def drawn(part: Sequence[int]) -> list[np.ndarray]:
            given = [] if shift is None else [asked[(index + shift) % items].given for index in part]
            images, masks = ([each[name] for each in given] for name in (IMAGE, MASK))
            conditions = [FillMask(images, masks, paste_back=False)] if given else []
            return draw(pipe, [asked[index].prompt for index in part], part, conditions=conditions)

        def measure(index: int, image: np.ndarray) -> list[float]:
            return [*inside(image, asked[index]), error_outside(image, asked[index])]

        return np.array(measured(variant, items, drawn, measure))

    base, filling = run("base", load_pipeline()), load_filling(folders[RECIPE])
    own, others = run("with", filling, 0), run("others", filling, 1)
    pairs = np.stack([own[:, 2], round_trips(asked)], axis=1).tolist()
    return [
        Bound("shape asked for found in the hole", interval(own[:, 0].tolist()), low=ENOUGH, unit="%"),
        Bound("its colour, too", interval(own[:, :2].min(axis=1).tolist()), unit="%"),
        Bound("error outside the hole before pasting, of the VAE's", interval(pairs, _ratio), high=ROUND_TRIPS),
        Bound("shape there, with another item's image and hole", interval(others[:, 0].tolist()), unit="%"),
        Bound("error outside with another item's, of the VAE's", interval(_with(others, pairs), _ratio)),
        Bound("shape there, drawn by the base model", interval(base[:, 0].tolist()), unit="%"),
        Bound("error outside of the base model, of the VAE's", interval(_with(base, pairs), _ratio)),
    ]


def _with(rows: np.ndarray, pairs: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[error, trip] for error, (_, trip) in zip(rows[:, 2].tolist(), pairs, strict=True)]


def _ratio(rows: np.ndarray) -> float:
    return float(rows[:, 0].mean() / rows[:, 1].mean())


def load_filling(folder: Path) -> Any:
    """Load the tiny model with the LoRA that a training exported, which widens the embedder."""
    pipe = load_pipeline()
    pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="fill")
    return pipe


PROOF = Proof(
    "fill",
    "a Fill model from the base: widened embedder and a LoRA of rank 32",
    (RECIPE,),
    ("holes",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
