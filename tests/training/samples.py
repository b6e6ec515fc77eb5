"""Tiny batches for the training module, from the conditions of `benchmarks/support/conditions/cases.py`."""

from dataclasses import fields

import torch

from benchmarks.support.conditions import CASES, WINDOWS, pipeline_for
from diffusers_flux_ext.canvas import Canvas
from diffusers_flux_ext.condition import FluxCondition
from diffusers_flux_ext.training import TrainingBatch, bare_condition


CANVAS = Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32, max_sequence_length=16)
INPUTS = ("image", "images", "prompts", "masks", "loras", "values", "id_image", "image_embeds", "instruction_embeds")


@torch.no_grad()
def encode(*names: str) -> list[dict[str, torch.Tensor]]:
    """What the conditions encode for one sample."""
    pipe = pipeline_for(*names)
    pipe._guidance_scale = 1.0
    return [dict(CASES[name].build().encode(pipe, CANVAS)) for name in names]


def bare(name: str) -> FluxCondition:
    """The condition without its inputs."""
    case = CASES[name]
    kept = {
        each.name: case.inputs[each.name]
        for each in fields(case.make)
        if each.name in case.inputs and each.name not in (*INPUTS, *WINDOWS, "face_encoder", "image_encoder")
    }
    return bare_condition(case.make, **kept)


def batch(encoded: list[dict[str, torch.Tensor]], size: int = 1, seed: int = 0, **changes: object) -> TrainingBatch:
    """Random latents, noise, levels and prompts beside encoded conditions."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    rows, columns = CANVAS.grid
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
    given = {
        "latents": random(size, CANVAS.num_tokens, 64),
        "noise": random(size, CANVAS.num_tokens, 64),
        "sigma": torch.rand(size, generator=generator) * 0.8 + 0.1,
        "latent_ids": ids,
        "prompt_embeds": random(size, 16, 40),
        "pooled_prompt_embeds": random(size, 24),
        "guidance": torch.ones(size),
        "conditions": encoded,
    }
    return TrainingBatch(**{**given, **changes})
