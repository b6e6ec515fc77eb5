"""Nexus-Gen's adapter: image embeddings of the language model to text tokens of the generation decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.model_configs import CheckedConfigMixin
from .checkpoint import ADAPTER, DecoderPartMixin


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["ModelMixin", "NexusGenAdapter"]


class NexusGenAdapter(DecoderPartMixin, CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The adapter of Nexus-Gen's generation decoder ([paper](https://huggingface.co/papers/2504.21356)).

    It turns image embeddings of the language model into text tokens of FLUX. [`from_single_file`] reads the published
    `generation_decoder.bin`.

    Args:
        input_dim (`int`, defaults to 3584): Width of an image embedding, that of the language model.
        output_dim (`int`, defaults to 4096): Width of a text token.
    """

    config: Any
    part = ADAPTER

    @register_to_config
    def __init__(self, input_dim: int = 3584, output_dim: int = 4096) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.Linear(input_dim, output_dim),
            nn.LayerNorm(output_dim),
            nn.ReLU(),
            nn.Linear(output_dim, output_dim),
            nn.LayerNorm(output_dim),
        )

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Project image embeddings to text tokens.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, length, input_dim)`): 81 in the released model.

        Returns:
            `torch.Tensor` of shape `(batch_size, length, output_dim)`
        """
        return self.adapter(image_embeds)

    @classmethod
    def infer_config(cls, weights: Mapping[str, torch.Tensor], **overrides: Any) -> dict[str, Any]:
        """See [`DecoderPartMixin.infer_config`]."""
        output_dim, input_dim = weights["adapter.0.weight"].shape
        return {"input_dim": input_dim, "output_dim": output_dim, **overrides}
