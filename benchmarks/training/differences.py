"""Differential LoRAs beside plain LoRAs of the same four images: what each draws, and what else it changes.

All images show a circle on white, so a plain LoRA learns circles and white with the attribute; a differential LoRA
sees the same circles without it first.

python -m benchmarks.training.differences --work proofs
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval
from benchmarks.training.new_shape import shape_of
from benchmarks.training.runner import Bound, Proof, Variant, main
from benchmarks.training.shipped import FILE
from benchmarks.training.size import half_side
from benchmarks.training.worlds import ENLARGED, LEFT, centred
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.flux_shapes import Scene


Measure = dict[str, Any]

RECIPE = "tiny_differential"
MOVED = 8.0
"""Pixels by which the middle of an object may move and still be in its place."""

LESS = 0.7
"""The largest part of a plain LoRA's changes that a differential one may make."""


def not_blue(rng: random.Random, held_out: bool) -> Scene:
    """Return a scene of one object that is not large, in which nothing is blue."""
    while True:
        scene = centred(rng, held_out)
        item = scene.objects[0]
        if "blue" not in (scene.background, item.color) and item.size != "large":
            return scene


@dataclass(frozen=True)
class Attribute:
    """What the second images have.

    Args:
        is_there (`Callable`): Whether an image has it, by what was measured of the base's image and of this one.
        rest (`tuple[str, ...]`): What it should leave as it was.
        strength (`float`): What the differential LoRA is drawn with, since a difference of four pairs is faint at 1;
            the plain one is drawn at 1, where it spoils a third of the rest already.
    """

    is_there: Callable[[Measure, Measure], bool]
    rest: tuple[str, ...]
    strength: float


ATTRIBUTES = {
    "enlarged": Attribute(
        lambda before, after: after["half"] > (1 + ENLARGED) / 2 * before["half"],
        ("shape", "place", "background", "color"),
        2.0,
    ),
    "blue": Attribute(lambda before, after: after["color"] == "blue", ("shape", "place", "background"), 2.0),
    "left": Attribute(lambda before, after: _x(before) - _x(after) > LEFT / 2, ("shape", "background", "color"), 1.5),
}


def _x(contents: Measure) -> float:
    return float(contents["place"][0]) if contents["place"] else flux_shapes.CANVAS_SIZE / 2


def contents(image: np.ndarray) -> Measure:
    """Return what an image shows: its background, and shape, colour, middle and size of the largest object."""
    found = flux_shapes.detect_objects(image)
    return {
        "background": flux_shapes.detect_background(image)[0],
        "shape": shape_of(image),
        "color": found[0].color if found else None,
        "place": list(found[0].center) if found else None,
        "half": half_side(image),
    }


def change(before: Measure, after: Measure, names: Sequence[str]) -> float:
    """Return which part of some contents of an image is another one than before, from 0 to 1."""
    return sum(_differs(name, before[name], after[name]) for name in names) / len(names)


def _differs(name: str, before: Any, after: Any) -> bool:
    if name == "place" and before is not None and after is not None:
        return float(np.hypot(*np.subtract(before, after))) > MOVED
    return bool(before != after)


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare each differential LoRA with the plain one of its attribute; see [`Proof`]."""
    texts = prompts(scenes(items, not_blue))

    def run(name: str, strength: float = 1.0) -> list[Measure]:
        pipe = load_pipeline()
        if name in folders:
            pipe.load_lora_weights(folders[name], weight_name=FILE, adapter_name="trained")
            pipe.set_adapters("trained", strength)
        return measured(
            name, items, lambda part: draw(pipe, [texts[index] for index in part], part),
            lambda _, image: contents(image),
        )  # fmt: skip

    base, bounds = run("base"), []
    for name, attribute in ATTRIBUTES.items():
        rows: list[list[float]] = [[] for _ in base]
        for kind, strength in (("plain", 1.0), ("differential", attribute.strength)):
            for row, before, after in zip(rows, base, run(f"{kind}_{name}", strength), strict=True):
                row += [float(attribute.is_there(before, after)), change(before, after, attribute.rest)]
        bounds += _bounds(name, rows)
    return bounds


def _bounds(attribute: str, rows: Sequence[Sequence[float]]) -> list[Bound]:
    """Return the rows of an attribute, from plain attribute and change, differential attribute and change."""
    columns = np.asarray(rows).T
    return [
        Bound(f"{attribute}, plain LoRA", interval(list(columns[0])), unit="%"),
        Bound(f"{attribute}, differential LoRA", interval(list(columns[2])), unit="%"),
        Bound(f"{attribute}: differential less plain", interval(list(columns[2] - columns[0])), low=0.0, unit="%"),
        Bound(f"{attribute}: changes of the rest, plain LoRA", interval(list(columns[1])), unit="%"),
        Bound(f"{attribute}: changes of the rest, differential LoRA", interval(list(columns[3])), unit="%"),
        Bound(f"{attribute}: differential by plain changes of the rest", interval(rows, _ratio), high=LESS),
    ]


def _ratio(rows: np.ndarray) -> float:
    return float(rows[:, 3].mean() / max(rows[:, 1].mean(), 1e-9))


COLUMNS = "file_columns: [image, controlnet_image]"


def _variants(attribute: str) -> tuple[Variant, Variant]:
    source = f"{{path: worlds/narrow_{attribute}/train.json, {COLUMNS}}}"
    cache = f"data.cache=runs/differences_{attribute}_cache"
    return (
        Variant(f"plain_{attribute}", RECIPE, ("differential=null", f"data.sources=[{source}]", cache)),
        Variant(f"differential_{attribute}", RECIPE, (f"differential.pairs.0.second={source}", cache)),
    )


PROOF = Proof(
    "differences",
    "three differential LoRAs of four pairs of images, beside plain LoRAs of the second images",
    tuple(variant for attribute in ATTRIBUTES for variant in _variants(attribute)),
    ("narrow", *(f"narrow_{attribute}" for attribute in ATTRIBUTES)),
    score,
)

if __name__ == "__main__":
    main(PROOF)
