"""A style LoRA draws stripes that no prompt asks for, and leaves nothing behind when it is removed.

python -m benchmarks.training.style --work proofs
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.worlds import STRIPE, centred
from diffusers_flux_ext import flux_shapes


REMOVED = 64
"""Items that are drawn again after removing the LoRA: equal bits need no interval."""


def stripes(image: np.ndarray, scene: flux_shapes.Scene) -> float:
    """Return how strong the taught stripes are in the middle of an image: 1 as they were taught, 0 without any.

    All objects of these scenes cover the middle, and stripes begin at the image's top, so their places are known: the
    object's colour above the middle, grey below it.

    Args:
        image (`np.ndarray` of shape `(128, 128, 3)`): The image.
        scene (`Scene`): A scene of one object in the middle.

    Returns:
        `float`: the part of the step from colour to grey that the image takes.
    """
    middle, inset = flux_shapes.CANVAS_SIZE // 2, STRIPE // 4
    columns = slice(middle - 3, middle + 3)
    above, below = (
        255 * np.median(image[rows, columns].reshape(-1, 3), axis=0)
        for rows in (slice(middle - STRIPE + inset, middle - inset), slice(middle + inset, middle + STRIPE - inset))
    )
    step = np.subtract(flux_shapes.COLORS[scene.objects[0].color], flux_shapes.BACKGROUNDS["gray"])
    return float((above - below) @ step / (step @ step))


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Count stripes with the LoRA, without it, at negative strength and after removing it; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, centred)
    texts = prompts(shown)

    def measure(index: int, image: np.ndarray) -> list[object]:
        return [stripes(image, shown[index]) > 0.5, hashlib.sha256(image.tobytes()).hexdigest()[:16]]

    def run(variant: str, count: int = items) -> list[list[object]]:
        return measured(variant, count, lambda part: draw(pipe, [texts[index] for index in part], part), measure)

    before = run("before")
    pipe.load_lora_weights(folders["tiny_style_lora"], weight_name=FILE, adapter_name="style")
    striped = run("with")
    pipe.set_adapters("style", -0.5)
    negative = run("negative")
    pipe.unload_lora_weights()
    after = run("after", min(items, REMOVED))
    same = [float(one[1] == other[1]) for one, other in zip(before, after)]
    return [
        Bound("striped with it", _share(striped), low=0.95, unit="%"),
        Bound("striped without it", _share(before), high=0.0, unit="%"),
        Bound("striped at strength -0.5", _share(negative), high=0.0, unit="%"),
        Bound("striped after removing it", _share(after), high=0.0, unit="%"),
        Bound("the base's image bit for bit after removing it", interval(same), low=1.0, unit="%"),
    ]


def _share(measures: list[list[object]]) -> dict[str, float]:
    return interval([float(bool(each[0])) for each in measures])


PROOF = Proof("style", "style LoRA (grey stripes), rank 8", ("tiny_style_lora",), ("stripes",), score)

if __name__ == "__main__":
    main(PROOF)
