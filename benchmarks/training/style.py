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
from benchmarks.training.worlds import centred
from diffusers_flux_ext import flux_shapes


FILE = "pytorch_lora_weights.safetensors"


def measure(index: int, image: np.ndarray) -> list[object]:
    """Return whether the largest object is striped, and a hash of the image."""
    found = flux_shapes.detect_objects(image)
    return [bool(found) and found[0].style == "striped", hashlib.sha256(image.tobytes()).hexdigest()[:16]]


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Count stripes with the LoRA, without it, at negative strength and after removing it; see [`Proof`]."""
    pipe, texts = load_pipeline(), prompts(scenes(items, centred))

    def run(variant: str) -> list[list[object]]:
        return measured(variant, items, lambda part: draw(pipe, [texts[index] for index in part], part), measure)

    before = run("before")
    pipe.load_lora_weights(folders["tiny_style_lora"], weight_name=FILE, adapter_name="style")
    striped = run("with")
    pipe.set_adapters("style", -0.5)
    negative = run("negative")
    pipe.unload_lora_weights()
    after = run("after")
    same = [float(one[1] == other[1]) for one, other in zip(before, after, strict=True)]
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
