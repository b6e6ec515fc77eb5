"""An untrained IP-Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from .model import FluxIPAdapter


_XLABS: dict[str, Any] = {
    "image_embed_dim": 768, "num_tokens": 4, "image_proj_type": "linear", "kv_bias": True, "key_norm_eps": None,
    "after_block": True,
}  # fmt: skip


def ip_adapter(transformer: Any, *, kind: Literal["instantx", "xlabs"] = "instantx", **sizes: Any) -> FluxIPAdapter:
    """Make an IP-Adapter that changes nothing until the first update: its values are zero.

    Args:
        transformer (`FluxTransformer2DModel`): Gives the blocks, the heads and the width of the text.
        kind (`"instantx"` or `"xlabs"`, defaults to `"instantx"`):
            How images become tokens and where the result is added. InstantX': SigLIP, 128 tokens, all blocks, before
            the output projection. XLabs': CLIP, 4 tokens, the double blocks, after the block.
        sizes: Arguments of [`FluxIPAdapter`] that replace these.

    Returns:
        `FluxIPAdapter`: in float32.

    Raises:
        ValueError: if `kind` is something else.
    """
    if kind not in ("instantx", "xlabs"):
        raise ValueError(f"`kind` of the IP-Adapter is {kind!r}; expected 'instantx' or 'xlabs'.")
    config = transformer.config
    blocks = config.num_layers + (config.num_single_layers if kind == "instantx" else 0)
    fitted = {
        "num_blocks": blocks,
        "attention_head_dim": config.attention_head_dim,
        "num_attention_heads": config.num_attention_heads,
        "cross_attention_dim": config.joint_attention_dim,
    }
    made = FluxIPAdapter(**{**fitted, **(_XLABS if kind == "xlabs" else {}), **sizes})
    for block in made.ip_adapter:
        for parameter in block.to_v_ip.parameters():
            nn.init.zeros_(parameter)
    return made


def files(module: FluxIPAdapter, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return XLabs' names for an adapter that is added after the block, and InstantX' for others.

    See [`Trainable`].
    """
    spelled = {_xlabs_name(key): value for key, value in tensors.items()} if module.config.after_block else tensors
    return {"ip_adapter.safetensors": dict(spelled)}


def _xlabs_name(key: str) -> str:
    if key.startswith("image_proj."):
        return key.replace("image_proj.", "ip_adapter_proj_model.", 1)
    _, index, which, part = key.split(".")
    return f"double_blocks.{index}.processor.ip_adapter_double_stream_{which[3]}_proj.{part}"
