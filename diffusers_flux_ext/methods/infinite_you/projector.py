"""InfiniteYou's image projector: from a face embedding to identity tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.modules import fill_module, read_weights_file
from ...checkpoints.sizes import build_empty, check_dimensions, count_blocks


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["InfiniteYouImageProjector", "ModelMixin"]

RELEASED_DIM_HEAD = 64


class _PerceiverAttention(nn.Module):
    """Queries attend to the embedding and to each other."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, embedding: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Return what to add to `queries` `(batch, m, dim)`, given `embedding` `(batch, n, dim)`."""
        queries = self.norm2(queries)
        query = self.to_q(queries)
        key, value = self.to_kv(torch.cat([self.norm1(embedding), queries], dim=1)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class InfiniteYouImageProjector(CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The projector of InfiniteYou ([paper](https://huggingface.co/papers/2503.16418)), a perceiver resampler.

    It turns an ArcFace embedding into identity tokens, which InfuseNet sees in place of the text.

    [`from_single_file`] reads the published `image_proj_model.bin`.

    Args:
        dim (`int`, defaults to 1280):
            Width of the queries.
        depth (`int`, defaults to 4):
            Number of layers.
        dim_head (`int`, defaults to 64):
            Width of an attention head.
        heads (`int`, defaults to 20):
            Number of attention heads.
        num_queries (`int`, defaults to 8):
            Number of identity tokens.
        embedding_dim (`int`, defaults to 512):
            Width of a face embedding.
        output_dim (`int`, defaults to 4096):
            Width of an identity token.
        ff_mult (`int`, defaults to 4):
            Width of the feed-forward layers, in widths of the queries.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        dim: int = 1280,
        depth: int = 4,
        dim_head: int = RELEASED_DIM_HEAD,
        heads: int = 20,
        num_queries: int = 8,
        embedding_dim: int = 512,
        output_dim: int = 4096,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([_PerceiverAttention(dim, dim_head, heads), _feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )

    def forward(self, id_embeds: torch.Tensor) -> torch.Tensor:
        """Project face embeddings.

        Args:
            id_embeds (`torch.Tensor` of shape `(batch_size, faces, embedding_dim)`): Normalised embeddings.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_queries, output_dim)`
        """
        embedding = self.proj_in(id_embeds)
        queries = self.latents.to(embedding.dtype).expand(embedding.shape[0], -1, -1)
        layers: Any = self.layers
        for attention, feed_forward in layers:
            queries = attention(embedding, queries) + queries
            queries = feed_forward(queries) + queries
        return self.norm_out(self.proj_out(queries))

    @classmethod
    def from_single_file(
        cls,
        source: str | Path | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        dim_head: int = RELEASED_DIM_HEAD,
    ) -> InfiniteYouImageProjector:
        """Make a projector from the published file; the config follows from the shapes.

        Args:
            source (`str`, `Path` or `Mapping`):
                Path of `image_proj_model.bin` (a pickle, read with `weights_only=True`) or of a safetensors file, or
                a state dict, with or without the outer key `image_proj`.
            dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
            torch_dtype (`torch.dtype`, *optional*): Older name of `dtype`.
            device (`str` or `torch.device`, *optional*): Device of the model; CPU by default.
            dim_head (`int`, defaults to 64): Width of a head, which cannot be read from the weights.

        Returns:
            `InfiniteYouImageProjector` in eval mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds something else.
        """
        with naming(source):
            weights = _read(source)
            model = build_empty(cls, _infer_config(weights, dim_head))
            return fill_module(model, weights, torch_dtype if dtype is None else dtype, device)


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, dim * mult, bias=False), nn.GELU(), nn.Linear(dim * mult, dim, bias=False)
    )


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, torch.Tensor]:
    content: Any = source if isinstance(source, Mapping) else read_weights_file(source)
    content = content.get("image_proj", content)
    tensors = content if isinstance(content, Mapping) else {}
    wrong = [key for key, weight in tensors.items() if not isinstance(weight, torch.Tensor)]
    if not tensors or wrong:
        raise ValueError(f"Expected a state dict of InfiniteYou's projector, got {list_keys(wrong) or 'nothing'}.")
    return {str(key).removeprefix("image_proj."): weight for key, weight in tensors.items()}


def _infer_config(weights: Mapping[str, torch.Tensor], dim_head: int) -> dict[str, int]:
    sized = {
        "latents": 3, "proj_in.weight": 2, "proj_out.weight": 2, "layers.0.0.to_q.weight": 2, "layers.0.1.1.weight": 2
    }  # fmt: skip
    missing = [key for key in sized if key not in weights]
    if missing:
        raise ValueError(
            f"This is not an image projector of InfiniteYou: it lacks {missing}. The published file is "
            f"`image_proj_model.bin`; it has {list_keys(weights)}."
        )
    check_dimensions({key: weights[key].shape for key in sized}, sized)
    dim = weights["latents"].shape[2]
    return {
        "dim": dim,
        "depth": count_blocks(weights, "layers"),
        "dim_head": dim_head,
        "heads": weights["layers.0.0.to_q.weight"].shape[0] // dim_head,
        "num_queries": weights["latents"].shape[1],
        "embedding_dim": weights["proj_in.weight"].shape[1],
        "output_dim": weights["proj_out.weight"].shape[0],
        "ff_mult": weights["layers.0.1.1.weight"].shape[0] // dim,
    }
