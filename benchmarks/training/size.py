"""AttriCtrl: the size of an object follows its value; no prompt names it.

python -m benchmarks.training.size --work proofs
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound, Proof, main
from benchmarks.training.shipped import FILE
from benchmarks.training.worlds import RADII, size_of, sized
from diffusers_flux_ext import AttributeValueEncoder, AttributeValues, flux_shapes, tiny_flux_path
from diffusers_flux_ext.flux_shapes import Scene, ShapeObject


LADDER = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values of one prompt."""


RULER_MARKS = 31
"""Radii that the VAE is asked about for each shape."""


def half_side(image: np.ndarray) -> float:
    """Return half the side of a square as large as the box around the largest object, in pixels; 0 without one."""
    found = flux_shapes.detect_objects(image)
    if not found:
        return 0.0
    left, top, right, bottom = found[0].extent
    return float(((right - left) * (bottom - top)) ** 0.5 / 2)


@functools.cache
def ruler(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what `half_side` finds in true images of a shape after the VAE, rising, and the radii they have.

    The VAE loses thin corners, so that a perfect star of a radius looks smaller than a perfect square of it.
    """
    radii = np.linspace(*RADII, RULER_MARKS)
    scenes_of = [Scene("white", (ShapeObject(shape, "red", "", (64.0, 64.0), float(radius)),)) for radius in radii]
    pixels = np.stack([np.asarray(flux_shapes.render(scene)) for scene in scenes_of])
    halves = np.array([half_side(image) for image in through_vae(pixels)])
    return np.maximum.accumulate(halves), radii


def through_vae(pixels: np.ndarray) -> np.ndarray:
    """Encode and decode images of shape `(images, height, width, 3)`, bytes; return them as floats in [0, 1]."""
    vae = AutoencoderKL.from_pretrained(tiny_flux_path(), subfolder="vae")
    with torch.no_grad():
        images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        shown = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1) / 2 + 0.5
    return shown.permute(0, 2, 3, 1).numpy()


def measured_sizes(
    halves: Sequence[float], shown: Sequence[flux_shapes.Scene], radii: tuple[float, float] = RADII
) -> list[float]:
    """Return sizes as values, by what true images of the same shape look like after the VAE; see [`ruler`]."""
    return [
        float(np.interp(half, *ruler(scene.objects[0].shape)) - radii[0]) / (radii[1] - radii[0])
        for half, scene in zip(halves, shown, strict=True)
    ]


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
