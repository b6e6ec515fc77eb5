"""IP-Adapters of FLUX.1: from the embedding of an image to keys and values of every block."""

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
from ...checkpoints.sizes import build_empty
from .checkpoint import (
    convert_ip_adapter_state_dict,
    infer_ip_adapter_config,
)


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxIPAdapter", "ModelMixin"]


class _ImageProjection(nn.Module):
    """Tokens `(batch_size, num_tokens, channels)` from embeddings `(batch_size, image_embed_dim)`."""

    def __init__(self, image_embed_dim: int, channels: int, num_tokens: int, kind: str) -> None:
        super().__init__()
        if kind not in ("mlp", "linear"):
            raise ValueError(f"`image_proj_type` is {kind!r}; expected 'mlp' or 'linear'.")
        self.channels = channels
        hidden, out = 2 * image_embed_dim, channels * num_tokens
        self.proj: nn.Module = nn.Linear(image_embed_dim, out)
        if kind == "mlp":
            self.proj = nn.Sequential(nn.Linear(image_embed_dim, hidden), nn.GELU(), nn.Linear(hidden, out))
        self.norm = nn.LayerNorm(channels)

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(image_embeds).unflatten(-1, (-1, self.channels)))


class _KeysAndValues(nn.Module):
    """Keys and values `(batch_size, tokens, inner_dim)` of one block."""

    def __init__(self, channels: int, inner_dim: int, bias: bool) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(channels, inner_dim, bias=bias)
        self.to_v_ip = nn.Linear(channels, inner_dim, bias=bias)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class FluxIPAdapter(CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""An IP-Adapter ([paper](https://huggingface.co/papers/2308.06721)) for FLUX.1: images as prompts.

    The defaults are those of [InstantX/FLUX.1-dev-IP-Adapter](https://huggingface.co/InstantX/FLUX.1-dev-IP-Adapter)
    for SigLIP so400m: 128 tokens per image, all 57 blocks, normed keys, added to the attention's output.
    [XLabs' adapters](https://huggingface.co/XLabs-AI/flux-ip-adapter) for CLIP ViT-L load into the same class: 4 or 16
    tokens, the 19 double blocks, one Linear, biases, added after the block.

    Args:
        num_blocks (`int`, defaults to 57):
            Blocks that get keys and values: the double blocks, or the double blocks and then the single blocks.
        attention_head_dim (`int`, defaults to 128):
            Width of an attention head of the transformer.
        num_attention_heads (`int`, defaults to 24):
            Number of its attention heads.
        cross_attention_dim (`int`, defaults to 4096):
            Width of an image token.
        image_embed_dim (`int`, defaults to 1152):
            Width of the image encoder's embedding.
        num_tokens (`int`, defaults to 128):
            Tokens of an image.
        image_proj_type (`"mlp"` or `"linear"`, defaults to `"mlp"`):
            How the embedding becomes tokens.
        kv_bias (`bool`, defaults to `False`):
            Whether the keys' and values' Linears have biases.
        key_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the keys' RMS norm, which has no weight; `None` for no norm.
        after_block (`bool`, defaults to `False`):
            Whether the result is added after the double block instead of before the attention's output projection.
    """

    _no_split_modules = ["_ImageProjection", "_KeysAndValues"]
    _skip_layerwise_casting_patterns = ["norm"]

    config: Any

    @register_to_config
    def __init__(
        self,
        num_blocks: int = 57,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        cross_attention_dim: int = 4096,
        image_embed_dim: int = 1152,
        num_tokens: int = 128,
        image_proj_type: str = "mlp",
        kv_bias: bool = False,
        key_norm_eps: float | None = 1e-5,
        after_block: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = num_attention_heads * attention_head_dim
        self.image_proj = _ImageProjection(image_embed_dim, cross_attention_dim, num_tokens, image_proj_type)
        self.ip_adapter = nn.ModuleList(
            _KeysAndValues(cross_attention_dim, inner_dim, kv_bias) for _ in range(num_blocks)
        )

    def forward(self, image_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the keys and values of every block.

        Args:
            image_embeds (`torch.Tensor` of shape `(batch_size, num_images, image_embed_dim)`):
                Embeddings of the image encoder; several images become one sequence of tokens.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: each of shape `(num_blocks, batch_size, num_images * num_tokens,
            num_attention_heads, attention_head_dim)`.

        Raises:
            ValueError: If the embeddings have another shape.
        """
        self.check_image_embeds(image_embeds)
        config = self.config
        tokens = self.image_proj(image_embeds).flatten(1, 2)
        pairs = [block(tokens) for block in self.ip_adapter]
        keys, values = (
            torch.stack(part).unflatten(-1, (config.num_attention_heads, config.attention_head_dim))
            for part in zip(*pairs)
        )
        if config.key_norm_eps is not None:
            keys = nn.functional.rms_norm(keys, (config.attention_head_dim,), eps=config.key_norm_eps)
        return keys, values

    def check_image_embeds(self, image_embeds: torch.Tensor) -> None:
        """Raise a `ValueError` unless embeddings have the shape `(batch_size, num_images, image_embed_dim)`."""
        if image_embeds.ndim != 3 or image_embeds.shape[2] != self.config.image_embed_dim:
            raise ValueError(
                f"`image_embeds` has the shape {tuple(image_embeds.shape)}; expected (batch_size, num_images, "
                f"{self.config.image_embed_dim}), where a condition may leave the first out. Use the image encoder "
                f"that the adapter was trained with."
            )

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> FluxIPAdapter:
        """Make an adapter from weights in any published layout; the config follows from names and shapes.

        Args:
            state_dict (`Mapping`):
                Weights in the layout of InstantX, XLabs, diffusers or DiffSynth-Studio, nested or flat. They are
                copied.
            torch_dtype (`torch.dtype`, *optional*):
                Dtype of the model; that of each tensor by default.
            device (`str` or `torch.device`, *optional*):
                Device of the model; that of each tensor by default.
            overrides:
                Arguments of the constructor that replace inferred ones; `attention_head_dim` where it is not 128.

        Returns:
            `FluxIPAdapter` in eval mode.

        Raises:
            ValueError: If keys are unknown or missing, or if shapes do not fit together.
            TypeError: If an override is not an argument of the constructor.
        """
        weights = convert_ip_adapter_state_dict(state_dict)
        config = infer_ip_adapter_config({key: tuple(tensor.shape) for key, tensor in weights.items()}, **overrides)
        model = build_empty(cls, config)
        _check_weights(model.state_dict(), weights)
        return fill_module(model, weights, torch_dtype, device)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path | Mapping[str, Any],
        *,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> FluxIPAdapter:
        """Make an adapter from one local file: `ip-adapter.bin` or a safetensors file, in any published layout.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `Path` or `Mapping`):
                Path of the file. Pickles are read with `weights_only=True`. A mapping goes to [`from_state_dict`].
            dtype (`torch.dtype`, *optional*):
                Dtype of the model; that of each tensor of the file by default.
            kwargs:
                See [`from_state_dict`]; `torch_dtype` is the older name of `dtype`.

        Returns:
            `FluxIPAdapter` in eval mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read, or its keys or shapes are not those of an IP-Adapter.
            TypeError: If an override is not an argument of the constructor.
        """
        source = pretrained_model_link_or_path_or_dict
        kwargs["torch_dtype"] = dtype or kwargs.get("torch_dtype")
        with naming(source):
            state_dict = source if isinstance(source, Mapping) else read_weights_file(source)
            return cls.from_state_dict(state_dict, **kwargs)


def _check_weights(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        raise ValueError(
            f"The weights of the IP-Adapter do not fit their own structure. Missing: {list_keys(missing)}; left over: "
            f"{list_keys(unknown)}."
        )
    wrong = {
        key: (tuple(weights[key].shape), tuple(tensor.shape))
        for key, tensor in expected.items()
        if weights[key].shape != tensor.shape
    }
    if wrong:
        key, (found, wanted) = next(iter(wrong.items()))
        raise ValueError(
            f"`{key}` has the shape {found}, but {wanted} follows from the other weights and heads of the given "
            f"width. Pass `attention_head_dim` if the heads are not 128 wide. {len(wrong)} tensors do not fit."
        )
