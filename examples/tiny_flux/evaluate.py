"""Stage "scores": how often the finished model draws what it is asked for."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from diffusers_flux_ext import FluxEliGenPipeline, flux_shapes
from diffusers_flux_ext.training import atomic_path

from .settings import Settings


_BATCH = 16
_SEED = 1
Row = dict[str, str | float]
"""One line of the table: what was run, and shares in [0, 1]."""


def score_run(settings: Settings) -> list[Row]:
    """Score the finished pipeline and its LoRA on held-out scenes.

    Args:
        settings (`Settings`): The run; writes its `scores` file.

    Returns:
        `list[Row]`
    """
    amounts = settings.amounts
    rows = score_prompts(settings.pipeline, amounts.test_scenes, amounts.inference_steps, settings.device)
    rows += score_entity_control(
        settings.pipeline, settings.lora, amounts.test_scenes, amounts.inference_steps, settings.device
    )
    with atomic_path(settings.scores) as file:
        file.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return rows


def score_prompts(folder: Path, count: int, steps: int, device: str = "cpu", true_cfg_scale: float = 2.0) -> list[Row]:
    """Draw held-out scenes of one object from their captions alone.

    Args:
        folder (`Path`): A saved `FluxPipeline`.
        count (`int`): Number of scenes.
        steps (`int`): Steps of each drawing.
        device (`str`, defaults to `"cpu"`): Where to draw.
        true_cfg_scale (`float`, defaults to 2.0): Guidance; 1 turns it off.

    Returns:
        `list[Row]`: one row.
    """
    rng = random.Random(777)
    scenes = [flux_shapes.sample_scene(rng, held_out=True, layouts=("single", "pos")) for _ in range(count)]
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
    prompts = [flux_shapes.caption(scene, rng) for scene in scenes]
    images = draw(pipeline, prompts, steps, true_cfg_scale)
    summary = flux_shapes.summarize_scenes([flux_shapes.score_scene(*pair) for pair in zip(images, scenes)])
    return [{"run": "one object, prompt only", **summary}]


def score_entity_control(
    folder: Path,
    lora: Path,
    count: int,
    steps: int,
    device: str = "cpu",
    true_cfg_scale: float = 2.0,
    sheet: Path | None = None,
) -> list[Row]:
    """Draw held-out scenes of two and three objects with entities, without the LoRA, and from the prompt alone.

    Args:
        folder (`Path`): A saved `FluxPipeline`.
        lora (`Path`): The EliGen LoRA.
        count (`int`): Number of scenes.
        steps (`int`): Steps of each drawing.
        device (`str`, defaults to `"cpu"`): Where to draw.
        true_cfg_scale (`float`, defaults to 2.0): Guidance; 1 turns it off.
        sheet (`Path`, *optional*): Where to save the first scenes beside their images.

    Returns:
        `list[Row]`: one row per way.
    """
    scenes, rng = flux_shapes.held_out_entity_scenes(count), random.Random(5)
    prompts = [flux_shapes.caption(scene, rng) for scene in scenes]
    pipeline = FluxEliGenPipeline.from_pretrained(folder, dtype=torch.float32).to(device)

    def run(name: str, entities: bool) -> tuple[Row, list[np.ndarray]]:
        images = draw(pipeline, prompts, steps, true_cfg_scale, scenes if entities else None)
        masks = [flux_shapes.entity_boxes(scene) for scene in scenes]
        found = [flux_shapes.score_entities(*each) for each in zip(images, scenes, masks)]
        return {"run": name, **flux_shapes.summarize_entities(found)}, images

    without, _ = run("entities, no LoRA", entities=True)
    prompt_only, _ = run("prompt only, no LoRA", entities=False)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    with_lora, images = run("entities, LoRA", entities=True)
    if sheet is not None:
        contact_sheet(scenes, images).save(sheet)
    return [with_lora, without, prompt_only]


def draw(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    steps: int,
    true_cfg_scale: float,
    entities_of: Sequence[flux_shapes.Scene] | None = None,
) -> list[np.ndarray]:
    """Draw images in batches.

    Args:
        pipeline (`FluxPipeline`): The pipeline.
        prompts (`Sequence[str]`): One per image.
        steps (`int`): Steps of each drawing.
        true_cfg_scale (`float`): Guidance; 1 turns it off.
        entities_of (`Sequence[Scene]`, *optional*): Scenes whose objects are given as entities; needs a
            [`FluxEliGenPipeline`].

    Returns:
        `list[np.ndarray]`: each `(128, 128, 3)`, floats in [0, 1].
    """
    pipeline.set_progress_bar_config(disable=True)
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        extra: dict[str, Any] = {}
        if entities_of is not None:
            extra["entity_prompts"] = [flux_shapes.entity_prompts(scene) for scene in entities_of[part]]
            extra["entity_masks"] = [flux_shapes.entity_boxes(scene) for scene in entities_of[part]]
        images += list(
            pipeline(
                list(prompts[part]),
                height=flux_shapes.CANVAS_SIZE,
                width=flux_shapes.CANVAS_SIZE,
                num_inference_steps=steps,
                max_sequence_length=32,
                true_cfg_scale=true_cfg_scale,
                negative_prompt="" if true_cfg_scale > 1 else None,
                generator=torch.Generator().manual_seed(_SEED + start),
                output_type="np",
                **extra,
            ).images
        )
    return images


def contact_sheet(scenes: Sequence[flux_shapes.Scene], images: Sequence[np.ndarray], columns: int = 8) -> Image.Image:
    """Scenes above the images drawn of them.

    Args:
        scenes (`Sequence[Scene]`): The scenes.
        images (`Sequence[np.ndarray]`): One per scene, floats in [0, 1].
        columns (`int`, defaults to 8): Pairs per row.

    Returns:
        `PIL.Image.Image`
    """
    side = flux_shapes.CANVAS_SIZE + 2
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (side * columns, 2 * side * rows))
    for index, (scene, image) in enumerate(zip(scenes, images)):
        x, y = side * (index % columns), 2 * side * (index // columns)
        sheet.paste(flux_shapes.render(scene), (x, y))
        sheet.paste(Image.fromarray((image * 255).round().astype(np.uint8)), (x, y + side))
    return sheet


def table(rows: Sequence[Row]) -> str:
    """Return rows as text, shares in percent."""
    lines = []
    for row in rows:
        shares = [
            f"{name} {value:.0f}" if name in ("entities", "objects") else f"{name} {100 * value:.0f} %"
            for name, value in row.items()
            if isinstance(value, float)
        ]
        lines.append(f"{row['run']:24} " + "  ".join(shares))
    return "\n".join(lines)
