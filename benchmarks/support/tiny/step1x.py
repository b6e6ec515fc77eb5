"""A tiny Step1X-Edit: its connector, and pictures to edit."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.support.tiny.qwen_vl import HIDDEN
from diffusers_flux_ext import Step1XConnector
from diffusers_flux_ext.methods.step1x_edit.checkpoint import MODULES
from diffusers_flux_ext.testing import make_model, seeded


# As wide as the tiny transformer's text.
SIZES: dict[str, Any] = {
    "in_channels": HIDDEN,
    "hidden_size": 40,
    "num_attention_heads": 2,
    "num_layers": 2,
    "pooled_dim": 24,
}


def tiny_connector(seed: int = 0, **overrides: Any) -> Step1XConnector:
    """A connector of two blocks of width 40."""
    return make_model(Step1XConnector, {**SIZES, **overrides}, seed)


def instruction_embeds(seed: int = 0, count: int = 1, length: int = 7) -> torch.Tensor:
    """Random hidden states of instructions."""
    return torch.randn(count, length, HIDDEN, generator=seeded(seed))


def edited(seed: int = 0, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def published_weights(connector: Step1XConnector) -> dict[str, torch.Tensor]:
    """The connector's weights under the published names, without their prefix."""
    names = {ours: published for published, ours in MODULES}
    weights = {}
    for key, tensor in connector.state_dict().items():
        module, _, part = key.rpartition(".")
        index = key.split(".")[1] if key.startswith("blocks.") else ""
        form = module.replace(f"blocks.{index}.", "blocks.{}.", 1) if index else module
        name = "scale_factor" if key == "pooled_scale" else f"{names[form].format(index)}.{part}"
        weights[name] = tensor.clone()
    return weights
