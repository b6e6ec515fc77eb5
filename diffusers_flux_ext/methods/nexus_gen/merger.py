"""Nexus-Gen's embedding merger: embeddings of the edited and of the given image to tokens of the editing decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.sizes import count_blocks
from .checkpoint import MERGER, DecoderPartMixin


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["ModelMixin", "NexusGenEditingMerger"]

Grid = Sequence[int]
RELEASED_SECTION = (16, 24, 24)


class _Attention(nn.Module):
    """Grouped-query attention of all tokens to all tokens, with the published files' names."""

    def __init__(self, dim: int, heads: int, key_value_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, key_value_heads * self.head_dim)
        self.v_proj = nn.Linear(dim, key_value_heads * self.head_dim)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, hidden_states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attend over `hidden_states` `(batch, length, dim)`; `rotation` is cosines and sines `(length, head_dim)`."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            project(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2) for project in projections
        )
        query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        shared = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """A gated feed-forward layer with the published files' names."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner_dim, bias=False)
        self.up_proj = nn.Linear(dim, inner_dim, bias=False)
        self.down_proj = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, dim)` to the same shape."""
        return self.down_proj(functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class _Layer(nn.Module):
    """A layer of Qwen2.5 without a causal mask."""

    def __init__(self, dim: int, inner_dim: int, heads: int, key_value_heads: int, eps: float) -> None:
        super().__init__()
        self.self_attn = _Attention(dim, heads, key_value_heads)
        self.mlp = _FeedForward(dim, inner_dim)
        self.input_layernorm = nn.RMSNorm(dim, eps=eps)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=eps)

    def forward(self, hidden_states: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Map `(batch, length, dim)` to the same shape."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), rotation)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class NexusGenEditingMerger(DecoderPartMixin, CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The embedding merger of Nexus-Gen's editing decoder ([paper](https://huggingface.co/papers/2504.21356)).

    One layer of attention combines the embeddings of the edited image and of the given one; a projector turns them
    into text tokens of FLUX. Both images share their positions: rows and columns are spread over a base grid of 72 x
    72, whatever their size. [`from_single_file`] reads the published `edit_decoder.bin`.

    Args:
        hidden_size (`int`, defaults to 3584): Width of an image embedding, that of the language model.
        intermediate_size (`int`, defaults to 18944): Hidden width of the feed-forward layer.
        num_layers (`int`, defaults to 1): Number of layers.
        num_attention_heads (`int`, defaults to 28): Number of attention heads.
        num_key_value_heads (`int`, defaults to 4): Number of heads of keys and values.
        output_dim (`int`, defaults to 4096): Width of a text token.
        expand_ratio (`int`, defaults to 4): Width inside the projector, in `output_dim`.
        rms_norm_eps (`float`, defaults to 1e-6): Added to the mean square in the norms.
        rope_theta (`float`, defaults to 1000000.0): Base of the rotary frequencies.
        mrope_section (`tuple[int, int, int]`, defaults to `(16, 24, 24)`):
            How many frequencies of a head are for time, rows and columns; half a head in all.
        base_grid (`int`, defaults to 72): Side of the base grid.
        spatial_merge_size (`int`, defaults to 2): Patches along a side of an embedding.

    Raises:
        ValueError: if the heads do not fill the width, or the sections do not fill half a head.
    """

    config: Any
    part = MERGER
    _no_split_modules = ["_Layer"]
    _repeated_blocks = ["_Layer"]

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_layers: int = 1,
        num_attention_heads: int = 28,
        num_key_value_heads: int = 4,
        output_dim: int = 4096,
        expand_ratio: int = 4,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 1000000.0,
        mrope_section: Sequence[int] = RELEASED_SECTION,
        base_grid: int = 72,
        spatial_merge_size: int = 2,
    ) -> None:
        super().__init__()
        if 2 * sum(mrope_section) * num_attention_heads != hidden_size or num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"`mrope_section` {tuple(mrope_section)} must add up to half of a head, and the heads of keys and "
                f"values must divide the others, got {num_attention_heads} heads, {num_key_value_heads} of keys and "
                f"values and a width of {hidden_size}."
            )
        sizes = (hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, rms_norm_eps)
        self.layers = nn.ModuleList(_Layer(*sizes) for _ in range(num_layers))
        wide = output_dim * expand_ratio
        self.projector = nn.Sequential(
            nn.RMSNorm(hidden_size, eps=rms_norm_eps),
            nn.Linear(hidden_size, wide),
            nn.RMSNorm(wide, eps=rms_norm_eps),
            nn.SiLU(),
            nn.Linear(wide, output_dim),
            nn.RMSNorm(output_dim, eps=rms_norm_eps),
        )

    def forward(
        self,
        image_embeds: torch.Tensor,
        grid: Grid,
        reference_embeds: torch.Tensor | None = None,
        reference_grid: Grid | None = None,
    ) -> torch.Tensor:
        """Merge the embeddings into text tokens.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): Of the image to be drawn.
            grid (`tuple[int, int]`): Its rows and columns of patches, `(18, 18)` for 81 embeddings.
            reference_embeds (`torch.Tensor` of shape `(batch_size, reference_length, hidden_size)`, *optional*):
                Of the given image.
            reference_grid (`tuple[int, int]`, *optional*): Its rows and columns of patches.

        Returns:
            `torch.Tensor` of shape `(batch_size, length + reference_length, output_dim)`

        Raises:
            ValueError: if a grid does not have as many embeddings as there are, or one of the last two is missing.
        """
        if (reference_embeds is None) != (reference_grid is None):
            raise ValueError("`reference_embeds` and `reference_grid` belong together, but one of them is missing.")
        images = [(image_embeds, grid)]
        if reference_embeds is not None and reference_grid is not None:
            images.append((reference_embeds, reference_grid))
        positions = torch.cat([self._positions(embeds, side) for embeds, side in images])
        hidden_states = torch.cat([embeds for embeds, _ in images], dim=1)
        rotation = self._rotation(positions, hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, rotation)
        return self.projector(hidden_states)

    def _positions(self, embeds: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Return the positions `(length, 3)` of one image's embeddings: time (0), row and column on the base grid."""
        sides = [
            torch.arange(side // self.config.spatial_merge_size, device=embeds.device) * (self.config.base_grid / side)
            for side in grid
        ]
        if len(sides) != 2 or embeds.shape[1] != len(sides[0]) * len(sides[1]):
            raise ValueError(
                f"A grid of {tuple(grid)} patches (rows, columns) has {' x '.join(str(len(side)) for side in sides)} "
                f"embeddings, got {embeds.shape[1]}."
            )
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)

    def _rotation(self, positions: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        section = torch.tensor(self.config.mrope_section, device=positions.device)
        axes = torch.arange(3, device=positions.device).repeat_interleave(section)
        steps = torch.arange(len(axes), device=positions.device, dtype=torch.float32) / len(axes)
        angles = positions[:, axes] / self.config.rope_theta**steps
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    @classmethod
    def infer_config(cls, weights: Mapping[str, torch.Tensor], **overrides: Any) -> dict[str, Any]:
        """See [`DecoderPartMixin.infer_config`]; heads are as wide as `mrope_section` says."""
        head_dim = 2 * sum(overrides.get("mrope_section", RELEASED_SECTION))
        query, key, gate, wide, out = (weights[name].shape for name in MERGER.sized)
        return {
            "hidden_size": query[0],
            "intermediate_size": gate[0],
            "num_layers": count_blocks(weights, "layers"),
            "num_attention_heads": max(query[0] // head_dim, 1),
            "num_key_value_heads": max(key[0] // head_dim, 1),
            "output_dim": out[0],
            "expand_ratio": wide[0] // out[0],
            **overrides,
        }


def _rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat([-second, first], dim=-1) * sines
