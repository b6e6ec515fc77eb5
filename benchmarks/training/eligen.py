"""An EliGen LoRA puts each entity's colour into its own box.

python -m benchmarks.training.eligen --work proofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.drawing import Measured, draw, free_scenes, load_pipeline, prompts
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from diffusers_flux_ext import EntityRegions, flux_shapes


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Count right colours in own boxes without and with the LoRA; see [`Proof`]."""
    pipe, shown = load_pipeline(), free_scenes(items, objects=2)
    texts, boxes = prompts(shown), [flux_shapes.entity_boxes(scene) for scene in shown]

    def drawn(part: Any) -> list[np.ndarray]:
        entities = [flux_shapes.entity_prompts(shown[index]) for index in part]
        regions = EntityRegions(entities, [boxes[index] for index in part], max_sequence_length=8)
        return draw(pipe, [texts[index] for index in part], part, conditions=[regions], true_cfg_scale=2.0)

    def share(index: int, image: np.ndarray) -> float:
        found = flux_shapes.score_entities(image, shown[index], boxes[index])
        return sum(each.color for each in found) / len(found)

    without = measured("without", items, drawn, share)
    pipe.load_lora_weights(folders["tiny_eligen_lora"], weight_name=FILE, adapter_name="entities")
    following = measured("with", items, drawn, share)
    return [
        Bound("right colour in own box without it", interval(without), unit="%"),
        Bound("right colour in own box with it", interval(following), low=0.9, unit="%"),
    ]


PROOF = Proof("eligen", "EliGen LoRA, rank 32", ("tiny_eligen_lora",), ("entities",), score)

if __name__ == "__main__":
    main(PROOF)
