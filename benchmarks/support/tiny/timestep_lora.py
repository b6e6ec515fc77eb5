"""Tiny timestep LoRAs in the published layout, and a call of the transformer at given timesteps."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.support.lora_files.sizes import Sizes, double_modules, single_modules
from diffusers_flux_ext.testing import seeded, seeded_generator


SINUSOIDS = 256


def tiny_timestep_lora(seed: int = 0, rank: int = 3, single: int = 3) -> dict[str, torch.Tensor]:
    """A timestep LoRA of the layers that the published one has: no norms, and only attention in single blocks."""
    shapes = {}
    for index in range(2):
        shapes.update({n: s for n, s in double_modules(Sizes(), index).items() if "norm" not in n})
    for index in range(single):
        shapes.update({n: s for n, s in single_modules(Sizes(), index).items() if ".attn." in n})
    lora = {}
    for name, (outputs, inputs) in shapes.items():
        generator, prefix = seeded_generator(seed, name), f"base_model.model.{name}"
        lora[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        lora[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn(outputs, rank, generator=generator)
        for part, bias in (("gamma", 1.0), ("beta", 0.0)):
            weight = torch.randn(rank, SINUSOIDS, generator=generator) / SINUSOIDS**0.5
            lora[f"{prefix}.lora_time_{part}.weight"] = weight
            lora[f"{prefix}.lora_time_{part}.bias"] = bias + 0.3 * torch.randn(rank, generator=generator)
    return lora


def velocity(transformer: Any, timesteps: Sequence[float], grad: bool = False) -> torch.Tensor:
    """The velocity of one input at timesteps in [0, 1000]."""
    batch, generator = len(timesteps), seeded(3)
    hidden, text = torch.randn(1, 6, 64, generator=generator), torch.randn(1, 5, 40, generator=generator)
    with torch.set_grad_enabled(grad):
        return transformer(
            hidden_states=hidden.expand(batch, -1, -1),
            encoder_hidden_states=text.expand(batch, -1, -1),
            pooled_projections=torch.randn(1, 24, generator=generator).expand(batch, -1),
            timestep=torch.tensor(timesteps) / 1000,
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(5, 3),
            guidance=torch.full((batch,), 3.5),
        ).sample
