"""AttriCtrl: the size of an object follows its value; no prompt names it.

python -m benchmarks.training.size --work proofs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, flux_shapes

from .drawing import Measured, draw, load_pipeline, prompts, scenes
from .runner import Bound, Proof, main
from .statistics import interval, spearman
from .style import FILE
from .worlds import RADII, size_of, sized


def measured_size(image: np.ndarray) -> float:
    """Return the size of the largest object as a value, from the area of its box; 0 if there is none."""
    found = flux_shapes.detect_objects(image)
    if not found:
        return 0.0
    left, top, right, bottom = found[0].extent
    return (((right - left) * (bottom - top)) ** 0.5 / 2 - RADII[0]) / (RADII[1] - RADII[0])


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Correlate values with sizes; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, sized)
    texts, values = prompts(shown), [size_of(scene) for scene in shown]
    pipe.load_lora_weights(folders["tiny_size"], weight_name=FILE, adapter_name="size")
    encoder = AttributeValueEncoder.from_pretrained(folders["tiny_size"] / "encoder")

    def drawn(part: Sequence[int], value: Callable[[int], float] | None) -> list[np.ndarray]:
        conditions = [] if value is None else [AttributeValues(encoder, {"size": [value(index) for index in part]})]
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> float:
        return measured_size(image)

    following = measured("with", items, lambda part: drawn(part, values.__getitem__), measure)
    without = measured("LoRA without the value", items, lambda part: drawn(part, None), measure)
    pairs, others = (list(zip(values, sizes, strict=True)) for sizes in (following, without))
    return [
        Bound("Spearman of value and size", interval(pairs, spearman), low=0.95),
        Bound("Spearman without the encoder's tokens", interval(others, spearman)),
        Bound("mean error of the size, of 1", interval([abs(value - size) for value, size in pairs])),
    ]


PROOF = Proof("size", "AttriCtrl encoder of the size of objects, with a LoRA", ("tiny_size",), ("sizes",), score)

if __name__ == "__main__":
    main(PROOF)
