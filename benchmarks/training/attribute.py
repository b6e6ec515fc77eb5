"""AttriCtrl: the brightness of an image follows its value.

python -m benchmarks.training.attribute --work proofs
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


LOW, HIGH = 0.3, 1.0
"""Range of the values, that of the data."""


def value_of(index: int) -> float:
    """Return the value of an item: evenly spread, in an order that has nothing to do with the scenes."""
    return LOW + (HIGH - LOW) * (index * 0.6180339887 % 1)


def measured_brightness(image: np.ndarray, scene: flux_shapes.Scene) -> float:
    """Return the background's brightness, relative to that of the palette."""
    edge = np.concatenate([image[:3].reshape(-1, 3), image[-3:].reshape(-1, 3)]).mean(axis=0) * 255
    palette = np.asarray(flux_shapes.BACKGROUNDS[scene.background], dtype=float)
    return float((edge * palette).sum() / (palette * palette).sum())


def shown_scenes(items: int) -> list[flux_shapes.Scene]:
    """Return held-out scenes without black backgrounds, which tell nothing of the brightness."""
    return [scene for scene in scenes(2 * items) if scene.background != "black"][:items]


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Correlate values with brightness; see [`Proof`]."""
    pipe, shown = load_pipeline(), shown_scenes(items)
    texts = prompts(shown)
    pipe.load_lora_weights(folders["tiny_attribute"], weight_name=FILE, adapter_name="attribute")
    encoder = AttributeValueEncoder.from_pretrained(folders["tiny_attribute"] / "encoder")

    def drawn(part: Sequence[int], value: Callable[[int], float]) -> list[np.ndarray]:
        values = {"brightness": [value(index) for index in part]}
        conditions = [AttributeValues(encoder, values)]
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> float:
        return measured_brightness(image, shown[index])

    spread = measured("spread", items, lambda part: drawn(part, value_of), measure)
    pairs = [[value_of(index), each] for index, each in enumerate(spread)]
    errors = [abs(value - found) for value, found in pairs]
    return [
        Bound("Spearman of value and brightness", interval(pairs, spearman), low=0.95),
        Bound("mean error of the brightness", interval(errors)),
    ]


PROOF = Proof(
    "attribute", "AttriCtrl encoder of the brightness with a LoRA", ("tiny_attribute",), ("brightness",), score
)

if __name__ == "__main__":
    main(PROOF)
