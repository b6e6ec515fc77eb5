"""A ControlNet on places and AttriCtrl's encoder of the size, trained in one run, each do as well as alone.

The control image marks where the middle of the object is, and says nothing of its size and shape; so each condition
tells what the other one does not.

python -m benchmarks.training.together --work proofs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import FluxControlNetModel

from benchmarks.training.controlnet import distance
from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.size import half_side, measured_sizes
from benchmarks.training.worlds import marked, size_of, sized_anywhere
from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, ControlNetImage


ALONE = {"place": "tiny_marks", "size": "tiny_marks_size"}
BOTH = "tiny_marks_and_size"
NEAR = 8.0
"""Largest distance in pixels from the mark that counts as following it."""

LOST = 0.05
"""What a condition may lose by being trained beside another one."""


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare each condition trained alone with both trained together; see [`Proof`]."""
    shown = scenes(items, sized_anywhere)
    texts, marks, values = prompts(shown), [marked(scene) for scene in shown], [size_of(scene) for scene in shown]

    def run(recipe: str, *which: str) -> list[Any]:
        pipe, modules = _load(folders[recipe])

        def drawn(part: Sequence[int]) -> list[np.ndarray]:
            made: dict[str, Any] = {}
            if "place" in which:
                made["place"] = ControlNetImage(modules["controlnet"], [marks[index] for index in part])
            if "size" in which:
                made["size"] = AttributeValues(modules["encoder"], {"size": [values[index] for index in part]})
            return draw(pipe, [texts[index] for index in part], part, conditions=list(made.values()))

        def measure(index: int, image: np.ndarray) -> list[float]:
            return [distance(image, shown[index]), half_side(image)]

        found = measured(f"{recipe}: {' and '.join(which) or 'neither'}", items, drawn, measure)
        sizes = measured_sizes([half for _, half in found], shown)
        return list(zip([float(far <= NEAR) for far, _ in found], values, sizes, strict=True))

    alone = {name: run(recipe, name) for name, recipe in ALONE.items()}
    both, neither = run(BOTH, "place", "size"), run(BOTH)
    bounds = []
    for name, statistic, what, unit in (
        ("place", _near, "middle within 8 px of the mark", "%"),
        ("size", _follows, "Spearman of value and size", ""),
    ):
        pairs = [one + other for one, other in zip(both, alone[name], strict=True)]
        bounds += [
            Bound(f"{what}, without conditions", interval(neither, statistic), unit=unit),
            Bound(f"{what}, trained alone", interval(alone[name], statistic), unit=unit),
            Bound(f"{what}, trained together, both given", interval(both, statistic), unit=unit),
            Bound(f"{what}, only this one given", interval(run(BOTH, name), statistic), unit=unit),
            Bound(
                f"{what}: together less alone",
                interval(pairs, lambda rows, of=statistic: of(rows[:, :3]) - of(rows[:, 3:])),  # type: ignore[misc]
                low=-LOST,
                unit=unit,
            ),
        ]
    return bounds


def _near(rows: np.ndarray) -> float:
    return float(rows[:, 0].mean())


def _follows(rows: np.ndarray) -> float:
    return spearman(rows[:, 1:])


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load the tiny model with what a training exported."""
    pipe, modules = load_pipeline(), {}
    if (folder / FILE).exists():
        pipe.load_lora_weights(folder, weight_name=FILE, adapter_name="trained")
    for name, kind in (("controlnet", FluxControlNetModel), ("encoder", AttributeValueEncoder)):
        if (folder / name).exists():
            modules[name] = kind.from_pretrained(folder / name)
    return pipe, modules


PROOF = Proof(
    "together",
    "ControlNet on places and AttriCtrl of sizes with a LoRA: each alone, and in one run",
    (*ALONE.values(), BOTH),
    ("marks",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
