"""Untrained parts of Nexus-Gen's decoders, and the merger's weights as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .adapter import NexusGenAdapter
from .checkpoint import MERGER
from .merger import NexusGenEditingMerger


def generation_adapter(transformer: Any, *, input_dim: int = 3584) -> NexusGenAdapter:
    """Make an adapter of the generation decoder with random weights.

    Args:
        transformer (`FluxTransformer2DModel`): The width of its text is that of the tokens.
        input_dim (`int`, defaults to 3584): Width of an image embedding, that of the language model.

    Returns:
        `NexusGenAdapter`
    """
    return NexusGenAdapter(input_dim, transformer.config.joint_attention_dim)


def editing_merger(transformer: Any, **sizes: Any) -> NexusGenEditingMerger:
    """Make a merger of the editing decoder with random weights.

    Args:
        transformer (`FluxTransformer2DModel`): The width of its text is that of the tokens.
        sizes: Other arguments of [`NexusGenEditingMerger`]; the released ones by default.

    Returns:
        `NexusGenEditingMerger`

    Raises:
        ValueError: if the heads do not fill the width.
    """
    return NexusGenEditingMerger(**{"output_dim": transformer.config.joint_attention_dim, **sizes})


def merger_files(
    module: NexusGenEditingMerger, tensors: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Return the keys of the published decoder, without its transformer; see [`Trainable`]."""
    return {"embedding_merger.safetensors": {MERGER.prefix + key: tensor for key, tensor in tensors.items()}}
