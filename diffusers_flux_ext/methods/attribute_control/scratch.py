"""An untrained value encoder of AttriCtrl, and its weights as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .encoder import AttributeValueEncoder


def value_encoder(
    transformer: Any, *, attributes: Sequence[str] = ("brightness",), num_tokens: int = 32, embed_dim: int = 256
) -> AttributeValueEncoder:
    """Make an encoder of one or several attributes with random weights.

    Args:
        transformer (`FluxTransformer2DModel`): The width of its text is that of the tokens.
        attributes (`Sequence[str]`, defaults to `("brightness",)`): Names of the attributes.
        num_tokens (`int`, defaults to 32): Tokens of a value.
        embed_dim (`int`, defaults to 256): Width of the sinusoids.

    Returns:
        `AttributeValueEncoder`

    Raises:
        ValueError: if there is no attribute, or two have one name.
    """
    return AttributeValueEncoder(attributes, num_tokens, embed_dim, transformer.config.joint_attention_dim)


def files(module: AttributeValueEncoder, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return one file per attribute, as published; see [`Trainable`]."""
    prefixes = {name: f"encoders.{index}." for index, name in enumerate(module.config.attributes)}
    return {
        f"{name}.safetensors": {
            key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
        }
        for name, prefix in prefixes.items()
    }
