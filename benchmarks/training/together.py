"""A ControlNet and AttriCtrl's encoder, trained together, each do as well as alone.

The outlines of an item have the size that its value asks for in the training; in the scores they are those of the
item, or there are none, so that each condition is seen alone, too.

python -m benchmarks.training.together --work proofs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import FluxControlNetModel

from benchmarks.training.controlnet import distance
from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.size import half_side, measured_sizes
from benchmarks.training.worlds import size_of, sized
from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, ControlNetImage, flux_shapes


RECIPE = "tiny_control_size"


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Measure distance and size with both conditions and with each; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, sized)
    texts, outlines = prompts(shown), [flux_shapes.render_outlines(scene) for scene in shown]
    values = [size_of(scene) for scene in shown]
    pipe.load_lora_weights(folders[RECIPE], weight_name=FILE, adapter_name="together")
    encoder = AttributeValueEncoder.from_pretrained(folders[RECIPE] / "encoder")
    controlnet = FluxControlNetModel.from_pretrained(folders[RECIPE] / "controlnet")

    def drawn(part: Sequence[int], *which: str) -> list[np.ndarray]:
        made = {
            "outlines": ControlNetImage(controlnet, [outlines[index] for index in part]),
            "size": AttributeValues(encoder, {"size": [values[index] for index in part]}),
        }
        conditions = [made[name] for name in which]
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> list[float]:
        return [distance(image, shown[index]), half_side(image)]

    bounds = []
    for which in (("outlines", "size"), ("outlines",), ("size",)):

        def shown_with(part: Sequence[int], which: tuple[str, ...] = which) -> list[np.ndarray]:
            return drawn(part, *which)

        found = measured(" and ".join(which), items, shown_with, measure)
        pairs = list(zip(values, measured_sizes([each[1] for each in found], shown), strict=True))
        bounds.append(Bound(f"Spearman of value and size, with {' and '.join(which)}", interval(pairs, spearman)))
    return bounds


PROOF = Proof("together", "ControlNet and AttriCtrl with a LoRA, in one run", (RECIPE,), ("sizes",), score)

if __name__ == "__main__":
    main(PROOF)
