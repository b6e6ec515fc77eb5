"""A tiny Redux: its embedder, and a vision model of nine patches."""

from typing import Any

import torch
from diffusers import ReduxImageEncoder
from transformers import SiglipVisionModel

from benchmarks.support.tiny.ip_adapter import EMBED_DIM, VISION, siglip
from diffusers_flux_ext.testing import make_model, seeded_generator
from diffusers_flux_ext.testing.components import TRANSFORMER


def tiny_redux_embedder(seed: int = 0, width: int = TRANSFORMER["joint_attention_dim"]) -> ReduxImageEncoder:
    """Takes the tiny vision models' patches; as wide as the tiny T5's text by default."""
    return make_model(ReduxImageEncoder, {"redux_dim": EMBED_DIM, "txt_in_features": width}, seed)


def tiny_redux_vision(seed: int = 0, image_size: int = 96) -> SiglipVisionModel:
    """A SigLIP of 3 x 3 patches."""
    sizes = {**VISION, "image_size": image_size, "patch_size": image_size // 3}
    return make_model(siglip, sizes, seed)


def patch_embeds(seed: int = 0, *shape: int) -> torch.Tensor:
    """Last hidden states of a vision model; of one picture of nine patches by default."""
    return torch.randn(shape or (1, 9, EMBED_DIM), generator=seeded_generator(seed, "patches"))


def redux_modules(seed: int = 0) -> dict[str, Any]:
    """The modules that `ReduxImages` takes."""
    return {"image_embedder": tiny_redux_embedder(seed), "image_encoder": tiny_redux_vision(seed)}
