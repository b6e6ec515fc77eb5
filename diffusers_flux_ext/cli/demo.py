"""`flux-ext demo`: scenes with and without their regions."""

import argparse
import os
import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import flux_shapes, tiny_flux_path
from ..methods.eligen.pipeline import FluxEliGenPipeline
from ..tiny import TINY_CALL, TINY_LORA
from .contact_sheet import contact_sheet
from .images import save_image


DEMO_ENTITIES = (2, 3, 2, 3)


def demo(args: argparse.Namespace) -> Path:
    """Draw scenes that the tiny model has not seen, with and without their entities.

    Args:
        args (`argparse.Namespace`): `out`, `seed`.

    Returns:
        `Path`: the contact sheet.
    """
    # Tiny tensors gain little from threads, which can wait for each other for minutes on a busy machine.
    torch.set_num_threads(1)
    pipe = FluxEliGenPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.load_lora_weights(os.path.dirname(tiny_flux_path()), weight_name=TINY_LORA)
    rng = random.Random(args.seed)
    scenes = [flux_shapes.sample_free_scene(rng, count, held_out=True) for count in DEMO_ENTITIES]
    prompts = [flux_shapes.background_caption(scene) for scene in scenes]
    entities = [flux_shapes.entity_prompts(scene) for scene in scenes]
    boxes = [flux_shapes.entity_boxes(scene) for scene in scenes]
    spoken = [f"{', '.join(texts)} on {prompt}" for texts, prompt in zip(entities, prompts)]
    pipe.disable_lora()
    without = draw(pipe, args.seed, prompt=spoken, **TINY_CALL)
    pipe.enable_lora()
    results = draw(pipe, args.seed, prompt=prompts, entity_prompts=entities, entity_masks=boxes, **TINY_CALL)
    sheet = contact_sheet(spoken, without, prompts, entities, boxes, results)
    for index, image in enumerate(results):
        save_image(image, args.out / f"scene_{index}.png")
    return save_image(sheet, args.out / "contact_sheet.png")


def draw(pipe: FluxEliGenPipeline, seed: int, **call: Any) -> list[Image.Image]:
    """Call a pipeline with noise from a seed.

    Args:
        pipe (`FluxEliGenPipeline`): The pipeline.
        seed (`int`): Seed of the noise, drawn on the CPU.
        call: The pipeline's arguments.

    Returns:
        `list[PIL.Image.Image]`
    """
    return pipe(**call, generator=torch.Generator().manual_seed(seed), return_dict=False)[0]
