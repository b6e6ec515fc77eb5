"""All weights learn a new shape; the base's own predictions keep the old ones.

python -m benchmarks.training.new_shape --work proofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FluxTransformer2DModel

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.worlds import centred, crossed
from diffusers_flux_ext import flux_shapes


def shape_of(image: np.ndarray) -> str | None:
    """Return the shape of the largest object, if it is like one."""
    found = flux_shapes.detect_objects(image, shapes=flux_shapes.ALL_SHAPES)
    return found[0].shape if found and found[0].shape_iou >= 0.6 else None


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Count right shapes before and after; see [`Proof`]."""
    pipe = load_pipeline()
    shown = {"new": scenes(items, crossed), "old": scenes(items, centred)}

    def run(variant: str, kind: str) -> list[float]:
        texts = prompts(shown[kind])

        def right(index: int, image: np.ndarray) -> float:
            return float(shape_of(image) == shown[kind][index].objects[0].shape)

        def drawn(part: Any) -> list[np.ndarray]:
            return draw(pipe, [texts[index] for index in part], part, true_cfg_scale=2.0)

        return measured(f"{variant}, {kind}", items, drawn, right)

    before = {kind: run("before", kind) for kind in shown}
    pipe.transformer = FluxTransformer2DModel.from_pretrained(folders["tiny_cross"] / "transformer")
    after = {kind: run("after", kind) for kind in shown}
    lost = [one - other for one, other in zip(before["old"], after["old"], strict=True)]
    return [
        Bound("new shape before", interval(before["new"]), unit="%"),
        Bound("new shape after", interval(after["new"]), low=0.8, unit="%"),
        Bound("old shapes before", interval(before["old"]), unit="%"),
        Bound("old shapes after", interval(after["old"]), unit="%"),
        Bound("old shapes lost", interval(lost), high=0.05, unit="%"),
    ]


PROOF = Proof(
    "new_shape", "all weights, a new shape (cross), old shapes preserved", ("tiny_cross",), ("crosses", "old_shapes"),
    score,
)  # fmt: skip

if __name__ == "__main__":
    main(PROOF)
