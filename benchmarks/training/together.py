"""A ControlNet and AttriCtrl's encoder, trained together, each do as well as alone.

python -m benchmarks.training.together --work proofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FluxControlNetModel

from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, ControlNetImage, flux_shapes

from .attribute import measured_brightness, shown_scenes, value_of
from .controlnet import distance
from .drawing import Measured, draw, load_pipeline, prompts
from .runner import Bound, Proof, main
from .statistics import interval, spearman
from .style import FILE


RECIPE = "tiny_control_brightness"


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Measure distance and brightness with both conditions; see [`Proof`]."""
    pipe, shown = load_pipeline(), shown_scenes(items)
    texts, outlines = prompts(shown), [flux_shapes.render_outlines(scene) for scene in shown]
    pipe.load_lora_weights(folders[RECIPE], weight_name=FILE, adapter_name="together")
    encoder = AttributeValueEncoder.from_pretrained(folders[RECIPE] / "encoder")
    controlnet = FluxControlNetModel.from_pretrained(folders[RECIPE] / "controlnet")

    def drawn(part: Any) -> list[np.ndarray]:
        conditions = [
            ControlNetImage(controlnet, [outlines[index] for index in part]),
            AttributeValues(encoder, {"brightness": [value_of(index) for index in part]}),
        ]
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> list[float]:
        # The detector's contrast is that of full brightness.
        lit = (image / value_of(index)).clip(0, 1)
        return [distance(lit, shown[index]), measured_brightness(image, shown[index])]

    both = measured("both", items, drawn, measure)
    pairs = [[value_of(index), each[1]] for index, each in enumerate(both)]
    return [
        Bound("distance from the outlines", interval([each[0] for each in both]), unit="px"),
        Bound("Spearman of value and brightness", interval(pairs, spearman), low=0.9),
    ]


PROOF = Proof("together", "ControlNet and AttriCtrl with a LoRA, in one run", (RECIPE,), ("brightness",), score)

if __name__ == "__main__":
    main(PROOF)
