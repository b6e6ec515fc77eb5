"""A LoRA edits a reference image: the object gets the colour that the text names, and all else stays.

python -m benchmarks.training.edits --work proofs
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.training.drawing import SCENES_SEED, Measured, draw, load_pipeline
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.tasks import recolored
from diffusers_flux_ext import ReferenceImages, flux_shapes


RECIPE = "tiny_edits"
ENOUGH = 0.8


def edited(image: np.ndarray, scene: flux_shapes.Scene) -> list[float]:
    """Return whether the colour is as asked for, and whether shape, place and background all stayed.

    Args:
        image (`np.ndarray` of shape `(128, 128, 3)`): The image.
        scene (`Scene`): What it should show: one object.

    Returns:
        `list[float]`: the two, each 0 or 1.
    """
    score = flux_shapes.score_scene(image, scene)
    (item,) = score.objects
    return [float(item.color), float(item.shape and item.position and score.background)]


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare edits of the item's image with edits of another one, and with none; see [`Proof`]."""
    rng = random.Random(SCENES_SEED)
    asked = [recolored(rng, True) for _ in range(items)]
    pipe = load_pipeline()
    pipe.load_lora_weights(folders[RECIPE], weight_name=FILE, adapter_name="edits")

    def run(variant: str, shift: int | None = None) -> np.ndarray:
        def drawn(part: Sequence[int]) -> list[np.ndarray]:
            conditions = []
            if shift is not None:
                images = [asked[(index + shift) % items].given["kontext_images"] for index in part]
                conditions = [ReferenceImages([images], preferred_size=False)]
            return draw(pipe, [asked[index].prompt for index in part], part, conditions=conditions)

        return np.array(measured(variant, items, drawn, lambda index, image: edited(image, asked[index].scene)))

    own, others, without = run("with", 0), run("others", 1), run("without")
    return [
        Bound("colour as the text says", interval(own[:, 0].tolist()), low=ENOUGH, unit="%"),
        Bound("shape, place and background of the image kept", interval(own[:, 1].tolist()), low=ENOUGH, unit="%"),
        Bound("both", interval(own.min(axis=1).tolist()), unit="%"),
        Bound("colour as the text says, of another item's image", interval(others[:, 0].tolist()), unit="%"),
        Bound("the rest as in this item's image, of another's", interval(others[:, 1].tolist()), unit="%"),
        Bound("colour as the text says, without an image", interval(without[:, 0].tolist()), unit="%"),
        Bound("the rest, without an image", interval(without[:, 1].tolist()), unit="%"),
    ]


PROOF = Proof(
    "edits",
    'edits of a reference image ("make it blue"), a LoRA of rank 32',
    (RECIPE,),
    ("edits",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
