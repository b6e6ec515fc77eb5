"""A ControlNet from scratch puts objects where the outlines are; prompts name no place.

python -m benchmarks.training.controlnet --work proofs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import FluxControlNetModel

from benchmarks.training.drawing import Measured, draw, free_scenes, load_pipeline, prompts
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from diffusers_flux_ext import ControlNetImage, flux_shapes


MISSING = 64.0
"""Distance in pixels that an image without any object counts as: half of its width."""


def distance(image: np.ndarray, scene: flux_shapes.Scene) -> float:
    """Return how far the largest object's middle is from where it should be.

    Args:
        image (`np.ndarray`): The image.
        scene (`Scene`): A scene of one object.

    Returns:
        `float`: in pixels.
    """
    found = flux_shapes.detect_objects(image)
    left, top, right, bottom = scene.objects[0].extent
    if not found:
        return MISSING
    x, y = found[0].center
    return math.hypot(x - (left + right) / 2, y - (top + bottom) / 2)


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare the distance with and without the ControlNet; see [`Proof`]."""
    pipe, shown = load_pipeline(), free_scenes(items)
    texts, outlines = prompts(shown), [flux_shapes.render_outlines(scene) for scene in shown]
    controlnet = FluxControlNetModel.from_pretrained(folders["tiny_controlnet_single"] / "controlnet")

    def drawn(part: Sequence[int], shift: int | None = None) -> list[np.ndarray]:
        images = [] if shift is None else [outlines[(index + shift) % items] for index in part]
        conditions = [ControlNetImage(controlnet, images)] if images else []
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> float:
        return distance(image, shown[index])

    without = measured("without", items, drawn, measure)
    following = measured("with", items, lambda part: drawn(part, 0), measure)
    others = measured("others", items, lambda part: drawn(part, 1), measure)
    mean = interval(without)
    return [
        Bound("distance without it", mean, unit="px"),
        Bound("distance with it", interval(following), high=mean["value"] / 2, unit="px"),
        Bound("distance with another item's outlines", interval(others), unit="px"),
    ]


PROOF = Proof(
    "controlnet",
    "ControlNet on outlines, from scratch, one double block",
    ("tiny_controlnet", "tiny_controlnet_single"),
    ("outlines", "singles"),
    score,
)

if __name__ == "__main__":
    main(PROOF)
