"""AttriCtrl: the size of an object follows its value; no prompt names it.

python -m benchmarks.training.size --work proofs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.worlds import RADII, size_of, sized
from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, flux_shapes


LADDER = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values of one prompt."""


def half_side(image: np.ndarray) -> float:
    """Return half the side of a square as large as the box around the largest object, in pixels; 0 without one."""
    found = flux_shapes.detect_objects(image)
    if not found:
        return 0.0
    left, top, right, bottom = found[0].extent
    return float(((right - left) * (bottom - top)) ** 0.5 / 2)


def measured_sizes(
    halves: Sequence[float], shown: Sequence[flux_shapes.Scene], radii: tuple[float, float] = RADII
) -> list[float]:
    """Return sizes as values: a triangle's box is flatter than that of a circle of the same size."""
    sizes = []
    for half, scene in zip(halves, shown, strict=True):
        left, top, right, bottom = scene.objects[0].extent
        expected = ((right - left) * (bottom - top)) ** 0.5 / 2
        radius = scene.objects[0].radius * half / expected
        sizes.append((radius - radii[0]) / (radii[1] - radii[0]))
    return sizes


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Correlate values with sizes; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, sized)
    texts, values = prompts(shown), [size_of(scene) for scene in shown]
    pipe.load_lora_weights(folders["tiny_size"], weight_name=FILE, adapter_name="size")
    encoder = AttributeValueEncoder.from_pretrained(folders["tiny_size"] / "encoder")

    def drawn(part: Sequence[int], given: Sequence[float]) -> list[np.ndarray]:
        conditions = [AttributeValues(encoder, {"size": list(given)})] if given else []
        return draw(pipe, [texts[index] for index in part], part, conditions=conditions)

    def measure(index: int, image: np.ndarray) -> float:
        return half_side(image)

    following = measured("with", items, lambda part: drawn(part, [values[index] for index in part]), measure)
    without = measured("LoRA without the value", items, lambda part: drawn(part, []), measure)
    pairs, others = (list(zip(values, measured_sizes(halves, shown), strict=True)) for halves in (following, without))
    ladder = _ladder(measured, items // 2, shown, drawn)
    return [
        Bound("Spearman of value and size, mean over prompts of 5 values each", interval(ladder), low=0.95),
        Bound("Spearman of value and size, over all prompts", interval(pairs, spearman), low=0.95),
        Bound("Spearman without the encoder's tokens", interval(others, spearman)),
        Bound("mean error of the size, of 1", interval([abs(value - size) for value, size in pairs])),
    ]


def _ladder(
    measured: Measured,
    count: int,
    shown: Sequence[flux_shapes.Scene],
    drawn: Callable[..., list[np.ndarray]],
) -> list[float]:
    """Return the correlation of each prompt, drawn with several values from the same noise."""
    steps = len(LADDER)

    def images(part: Sequence[int]) -> list[np.ndarray]:
        return drawn([index // steps for index in part], [LADDER[index % steps] for index in part])

    halves = measured("ladder", count * steps, images, lambda index, image: half_side(image))
    rows = np.asarray(halves).reshape(count, steps)
    return [spearman(np.stack([np.asarray(LADDER), row], axis=1)) for row in rows]


PROOF = Proof("size", "AttriCtrl encoder of the size of objects, with a LoRA", ("tiny_size",), ("sizes",), score)

if __name__ == "__main__":
    main(PROOF)
