"""Tiny gates for the tiny transformer, and LoRAs of moderate size for it."""

from typing import Any

import torch

from benchmarks.support.tiny.lora_encoder import SIZES, tiny_lora
from diffusers_flux_ext import FluxLoRAFusion
from diffusers_flux_ext.testing import make_model


def tiny_fusion(seed: int = 1, **overrides: Any) -> FluxLoRAFusion:
    """Gates for the tiny transformer, none of them near 0 or 1 everywhere."""
    sizes = {name: SIZES[name] for name in ("num_layers", "num_single_layers", "inner_dim")}
    return make_model(FluxLoRAFusion, {**sizes, **overrides}, seed)


def small_lora(seed: int = 0, rank: int = 2, only: str = "") -> dict[str, torch.Tensor]:
    """A LoRA in DiffSynth-Studio's layout, of the layers with `only` in their names."""
    return {key: 0.3 * weight for key, weight in tiny_lora(seed, rank).items() if only in key}
