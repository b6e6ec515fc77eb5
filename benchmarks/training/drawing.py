"""Images of held-out scenes, drawn with what was trained and measured one by one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusers_flux_ext import FluxConditionedPipeline, flux_shapes, tiny_flux_path


BATCH = 16
NUM_INFERENCE_STEPS = 12
FIRST_SEED = 40_000
SCENES_SEED = 4242


def free_scenes(count: int, objects: int = 1) -> list[flux_shapes.Scene]:
    """Return held-out scenes of objects at free places.

    Args:
        count (`int`): How many.
        objects (`int`, defaults to 1): Objects of each.

    Returns:
        `list[Scene]`
    """
    rng = random.Random(SCENES_SEED)
    return [flux_shapes.sample_free_scene(rng, objects, held_out=True) for _ in range(count)]


def scenes(count: int, draw_scene: Callable[[random.Random, bool], flux_shapes.Scene]) -> list[flux_shapes.Scene]:
    """Return held-out scenes of a world.

    Args:
        count (`int`): How many.
        draw_scene (`Callable`): Draws one; see [`World`].

    Returns:
        `list[Scene]`
    """
    rng = random.Random(SCENES_SEED)
    return [draw_scene(rng, True) for _ in range(count)]


def prompts(of: Sequence[flux_shapes.Scene]) -> list[str]:
    """Return one caption per scene; those of free scenes name no place."""
    return [flux_shapes.caption(scene, random.Random(index)) for index, scene in enumerate(of)]


def load_pipeline() -> Any:
    """Load the tiny model in float32."""
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, texts: Sequence[str], places: Sequence[int], **options: Any) -> list[np.ndarray]:
    """Draw images, each from the noise of its own number, so that variants are compared at equal noise.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        texts (`Sequence[str]`): The prompts.
        places (`Sequence[int]`): The numbers.
        options: Further arguments of the pipeline, or others than the usual ones.

    Returns:
        `list[np.ndarray]`: each `(128, 128, 3)`, floats in [0, 1]; packed latents with `output_type="latent"`.
    """
    options = {"num_inference_steps": NUM_INFERENCE_STEPS, "output_type": "np", **options}
    if options.get("true_cfg_scale", 1) > 1:
        options["negative_prompt"] = [""] * len(texts)
    side = flux_shapes.CANVAS_SIZE
    made = pipe(
        list(texts),
        height=side,
        width=side,
        max_sequence_length=32,
        generator=[torch.Generator().manual_seed(FIRST_SEED + place) for place in places],
        **options,
    )
    return [np.asarray(image) for image in made.images]


@dataclass(frozen=True)
class Measured:
    """What was measured of each item, in a file, so that a stopped script goes on where it was.

    Args:
        path (`Path`): A file of JSON lines.
    """

    path: Path

    def __call__(
        self,
        variant: str,
        count: int,
        drawn: Callable[[Sequence[int]], Sequence[np.ndarray]],
        measure: Callable[[int, np.ndarray], Any],
    ) -> list[Any]:
        """Return the measures of all items, drawing those that are missing.

        Args:
            variant (`str`): What is drawn.
            count (`int`): Number of items.
            drawn (`Callable`): Maps numbers of items to images.
            measure (`Callable`): Maps an item's number and image to what JSON can hold.

        Returns:
            `list`: in the order of the items.
        """
        known = self._known(variant)
        missing = [index for index in range(count) if index not in known]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            for index, image in zip(part, drawn(part), strict=True):
                known[index] = measure(index, image)
                self._append({"variant": variant, "item": index, "measure": known[index]})
        return [known[index] for index in range(count)]

    def _known(self, variant: str) -> dict[int, Any]:
        if not self.path.exists():
            return {}
        rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        return {row["item"]: row["measure"] for row in rows if row["variant"] == variant}

    def _append(self, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def to_image(pixels: np.ndarray) -> Image.Image:
    """Convert floats in [0, 1] to an image."""
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
