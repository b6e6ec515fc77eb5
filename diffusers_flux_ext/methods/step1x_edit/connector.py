"""Step1X-Edit's connector: from a language model's hidden states to the text that the transformer reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from ...checkpoints.layouts import Shapes, TensorRecipe, TransformerLayout
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.single_file import SingleFileMixin
from .checkpoint import infer_connector_config, plan_connector


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["ModelMixin", "Step1XConnector", "Step1XContext"]


class Step1XContext(NamedTuple):
    """The part of the connector's result that does not depend on the timestep.

    Attributes:
        tokens (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): The tokens before the first block.
        attended (`torch.Tensor` of the same shape): Output of the first block's attention, before its gate.
        summary (`torch.Tensor` of shape `(batch_size, hidden_size)`): The text's part in the gates.
        pooled (`torch.Tensor` of shape `(batch_size, pooled_dim)`): The pooled prompt.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`): Which tokens are not padding; boolean.
    """

    tokens: torch.Tensor
    attended: torch.Tensor
    summary: torch.Tensor
    pooled: torch.Tensor
    attention_mask: torch.Tensor


class _RefinerBlock(nn.Module):
    """Attention and an MLP, both behind gates that depend on the text and the timestep."""

    def __init__(self, hidden_size: int, num_attention_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = int(hidden_size * mlp_ratio)
        self.heads = num_attention_heads
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.to_out = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, inner), nn.SiLU(), nn.Linear(inner, hidden_size))
        self.gates = nn.Linear(hidden_size, 2 * hidden_size)

    def _attend(self, tokens: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Run self-attention where `pairs` `(batch_size, 1, length, length)` allows it."""
        qkv = self.to_qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=pairs)
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def forward(
        self,
        tokens: torch.Tensor,
        pairs: torch.Tensor,
        modulation: torch.Tensor | None = None,
        attended: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map tokens `(batch_size, length, hidden_size)` to the same shape.

        Without `modulation` return the attention's output, which can be passed back as `attended`.
        """
        # A mode of `forward` rather than a method of its own: offloading hooks act on `forward` only.
        if modulation is None:
            return self._attend(tokens, pairs)
        attention_gate, mlp_gate = self.gates(functional.silu(modulation))[:, None].chunk(2, dim=-1)
        attended = self._attend(tokens, pairs) if attended is None else attended
        tokens = tokens + attention_gate * attended
        return tokens + mlp_gate * self.mlp(self.norm2(tokens))


class Step1XConnector(SingleFileMixin, CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The connector of Step1X-Edit ([paper](https://huggingface.co/papers/2504.17761)).

    It refines the hidden states of Qwen2.5-VL into the prompt of the transformer, and their mean into the pooled
    prompt. The refined tokens depend on the timestep, through gates. Padding is refined, too (it sees the first
    token only), and the transformer sees it, as published.

    Args:
        in_channels (`int`, defaults to 3584):
            Width of the language model.
        hidden_size (`int`, defaults to 4096):
            Width of the refined tokens, that of the transformer's text.
        num_attention_heads (`int`, defaults to 32):
            Heads of a block.
        num_layers (`int`, defaults to 2):
            Number of blocks.
        mlp_ratio (`float`, defaults to 4.0):
            Width of a block's MLP over `hidden_size`.
        pooled_dim (`int`, defaults to 768):
            Width of the pooled prompt.
        frequency_dim (`int`, defaults to 256):
            Width of the timestep's sinusoids.
        scale_pooled (`bool`, defaults to `True`):
            Whether a learned number scales the mean, as in version 1.0; version 1.1 has none.
        timestep_scale (`float`, defaults to 1.0):
            Factor of the timestep in [0, 1] before its sinusoids: 1 as released in version 1.0, 1000 in version 1.1.
        reference_offset (`int`, defaults to 0):
            What the position ids of the reference add to the target's on each axis: 0 in version 1.0, 1 in 1.1.

    Raises:
        ValueError: if the heads do not fill the width, or there is no block.
    """

    config: Any
    _supports_gradient_checkpointing = False
    runs_every_step = True
    # It runs part of its first block itself, bypassing the hooks of the block.
    streams_blocks = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3584,
        hidden_size: int = 4096,
        num_attention_heads: int = 32,
        num_layers: int = 2,
        mlp_ratio: float = 4.0,
        pooled_dim: int = 768,
        frequency_dim: int = 256,
        scale_pooled: bool = True,
        timestep_scale: float = 1.0,
        reference_offset: int = 0,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads or num_layers < 1:
            raise ValueError(
                f"`hidden_size` {hidden_size} must be a multiple of `num_attention_heads` {num_attention_heads}, and "
                f"`num_layers` {num_layers} at least 1."
            )
        self.proj_in = nn.Linear(in_channels, hidden_size)
        self.time_embedder = TimestepEmbedding(frequency_dim, hidden_size)
        self.text_embedder = PixArtAlphaTextProjection(in_channels, hidden_size, act_fn="silu")
        self.blocks = nn.ModuleList(
            _RefinerBlock(hidden_size, num_attention_heads, mlp_ratio) for _ in range(num_layers)
        )
        self.pooled_proj = nn.Linear(in_channels, pooled_dim)
        if scale_pooled:
            self.pooled_scale = nn.Parameter(torch.full((1,), -0.91))

    def forward(
        self,
        hidden_states: torch.Tensor | Step1XContext,
        attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
    ) -> Any:
        """Compute the prompt for a timestep, or the part that does not depend on the timestep.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, in_channels)` or `Step1XContext`):
                The language model's hidden states, or what an earlier call without a timestep returned for them.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
                1 for tokens, 0 for padding; all are tokens by default.
            timestep (`torch.Tensor` of shape `(batch_size,)`, *optional*): In [0, 1].

        Returns:
            `Step1XContext` without a timestep, and otherwise `tuple[torch.Tensor, torch.Tensor]`: the prompt
            `(batch_size, length, hidden_size)` and the pooled prompt `(batch_size, pooled_dim)`.
        """
        if isinstance(hidden_states, Step1XContext):
            context = hidden_states
        else:
            context = self._context(hidden_states, attention_mask)
        return context if timestep is None else (self._refine(context, timestep), context.pooled)

    def _context(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> Step1XContext:
        states = hidden_states.to(self.dtype)
        if attention_mask is None:
            attention_mask = states.new_ones(states.shape[:2])
        weights = attention_mask.to(states)[..., None]
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        scaled = mean * (1 + self.pooled_scale) if self.config.scale_pooled else mean
        tokens, mask = self.proj_in(states), attention_mask.bool()
        return Step1XContext(
            tokens=tokens,
            attended=self.blocks[0](tokens, _pairs(mask)),
            summary=self.text_embedder(mean),
            pooled=self.pooled_proj(scaled),
            attention_mask=mask,
        )

    def _refine(self, context: Step1XContext, timestep: torch.Tensor) -> torch.Tensor:
        sinusoids = get_timestep_embedding(
            timestep * self.config.timestep_scale,
            self.config.frequency_dim,
            flip_sin_to_cos=True,
            downscale_freq_shift=0,
        )
        modulation = self.time_embedder(sinusoids.to(self.dtype)) + context.summary
        tokens, pairs = context.tokens, _pairs(context.attention_mask)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, pairs, modulation, None if index else context.attended)
        return tokens

    @classmethod
    def plan_load(
        cls, shapes: Shapes, overrides: Mapping[str, Any]
    ) -> tuple[dict[str, TensorRecipe], dict[str, Any], TransformerLayout]:
        """See [`SingleFileMixin.plan_load`]; the transformer's own tensors in the file are left alone."""
        plan = plan_connector(shapes)
        return plan, infer_connector_config(cls, plan, overrides), "bfl"


def _pairs(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mask `(batch_size, 1, length, length)`: tokens see tokens, and everything sees the first one."""
    pairs = attention_mask[:, None, :, None] & attention_mask[:, None, None, :]
    pairs[..., 0] = True
    return pairs
