"""AttriCtrl: the size and the place of an object follow two values; no prompt names them.

They are drawn with guidance, as usual for the tiny model: without it orange stars on yellow are too faint to be found.

python -m benchmarks.training.attributes --work proofs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.size import LADDER, half_side, measured_sizes
from benchmarks.training.worlds import PLACED_RADII, PLACES, place_of, size_of, sized_and_placed
from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, flux_shapes


RECIPE = "tiny_attributes"
NAMES = ("size", "place")
LADDERS = 4
"""One of so many prompts is drawn with several values of one attribute."""

UNCHANGED = 0.1
"""Largest change of an attribute, of 1, that counts as none: 2 pixels of the size, 4 of the place."""


def middle(image: np.ndarray) -> float:
    """Return where the largest object's middle lies from left to right, as a value; in the middle without one."""
    found = flux_shapes.detect_objects(image)
    x = found[0].center[0] if found else flux_shapes.CANVAS_SIZE / 2
    return (x - PLACES[0]) / (PLACES[1] - PLACES[0])


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Correlate both values with what is drawn, and vary one while the other stays; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, sized_and_placed)
    texts = prompts(shown)
    pipe.load_lora_weights(folders[RECIPE], weight_name=FILE, adapter_name="attributes")
    encoder = AttributeValueEncoder.from_pretrained(folders[RECIPE] / "encoder")
    values = {"size": [size_of(scene, PLACED_RADII) for scene in shown], "place": [place_of(scene) for scene in shown]}

    def run(variant: str, given: Sequence[dict[str, float]], each: int = 1) -> dict[str, list[float]]:
        def drawn(part: Sequence[int]) -> list[np.ndarray]:
            asked = {name: [given[index][name] for index in part] for name in NAMES}
            numbers = [index // each for index in part]
            conditions = [AttributeValues(encoder, asked)]
            asked_for = [texts[number] for number in numbers]
            return draw(pipe, asked_for, numbers, conditions=conditions, true_cfg_scale=2.0)

        found = measured(variant, len(given), drawn, lambda index, image: [half_side(image), middle(image)])
        of = [shown[index // each] for index in range(len(given))]
        sizes = measured_sizes([half for half, _ in found], of, PLACED_RADII)
        return {"size": sizes, "place": [place for _, place in found]}

    following = run("both", [dict(zip(NAMES, pair)) for pair in zip(*(values[name] for name in NAMES))])
    bounds = []
    for name in NAMES:
        pairs = list(zip(values[name], following[name], strict=True))
        bounds.append(Bound(f"Spearman of value and {name}, over all prompts", interval(pairs, spearman), low=0.95))
    for name, other in (NAMES, NAMES[::-1]):
        given = [{name: value, other: values[other][item]} for item in range(items // LADDERS) for value in LADDER]
        rows = run(f"{name} varies", given, each=len(LADDER))
        found = {measure: np.reshape(numbers, (-1, len(LADDER))) for measure, numbers in rows.items()}
        inside = [spearman(np.stack([np.asarray(LADDER), row], axis=1)) for row in found[name]]
        moved = [float(np.abs(row - row.mean()).mean()) for row in found[other]]
        bounds += [
            Bound(f"Spearman of value and {name}, mean over prompts of 5 values each", interval(inside), low=0.95),
            Bound(f"mean change of the {other} while the {name} varies, of 1", interval(moved), high=UNCHANGED),
        ]
    return bounds


PROOF = Proof(
    "attributes",
    "AttriCtrl encoder of size and place, with a LoRA of rank 16",
    (RECIPE,),
    ("sizes_and_places",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
