"""An untrained ControlNet: a copy of a transformer's first blocks whose outputs are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxControlNetModel
from torch import nn

from ...checkpoints.layouts import TransformerLayout
from ...lora.loading.plain import plain_weights
from .checkpoint import convert_controlnet_state_dict
from .model import FluxExtControlNetModel


_TRUNK = ("x_embedder.", "context_embedder.", "time_text_embed.", "transformer_blocks.", "single_transformer_blocks.")
_SHARED = (
    "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim", "guidance_embeds",
    "axes_dims_rope",
)  # fmt: skip
# What the published union, inpainting and XLabs' ControlNets have.
_USUAL_BLOCKS = 4


def controlnet(
    transformer: Any,
    *,
    num_layers: int | None = None,
    num_single_layers: int | None = None,
    num_mode: int | None = None,
    extra_condition_channels: int = 0,
    pixels: bool = False,
) -> FluxControlNetModel:
    """Copy the first blocks of a transformer into a ControlNet ([paper](https://huggingface.co/papers/2302.05543)).

    Its output layers are zero, so a transformer with it computes exactly what it computes without, until the first
    update. The embedder of the control image is zero, too, except for one that takes pixels.

    Args:
        transformer (`FluxTransformer2DModel`): The model; adapters in it are not copied.
        num_layers (`int`, *optional*): Double blocks; 4 by default, or all if there are fewer.
        num_single_layers (`int`, *optional*): Single blocks; 4 by default, or all if there are fewer.
        num_mode (`int`, *optional*): Modes of a union ControlNet.
        extra_condition_channels (`int`, defaults to 0): Channels of a mask beside the latents; 4 for inpainting.
        pixels (`bool`, defaults to `False`): Whether it takes pixels, as XLabs', instead of latents.

    Returns:
        `FluxControlNetModel`: in float32; a [`FluxExtControlNetModel`] if it has channels for a mask.

    Raises:
        ValueError: if the transformer has fewer blocks, or its weights are quantised.
    """
    config = transformer.config
    channels = config.out_channels or config.in_channels
    counts = {
        "num_layers": _count("num_layers", num_layers, config.num_layers),
        "num_single_layers": _count("num_single_layers", num_single_layers, config.num_single_layers),
    }
    sizes = {name: config[name] for name in _SHARED} | counts | {"in_channels": channels, "num_mode": num_mode}
    if pixels:
        sizes |= {"patch_size": 2, "conditioning_embedding_channels": channels // 4}
    made: Any
    if extra_condition_channels:
        made = FluxExtControlNetModel(**sizes, extra_condition_channels=extra_condition_channels)
    else:
        made = FluxControlNetModel(**sizes)
    _copy_trunk(plain_weights(transformer), made)
    return made


def files(module: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return XLabs' names for a ControlNet that takes pixels, and diffusers' for others; see [`Trainable`]."""
    layout: TransformerLayout = "diffusers" if module.input_hint_block is None else "bfl"
    return {"controlnet.safetensors": convert_controlnet_state_dict(tensors, layout)}


def _count(name: str, wanted: int | None, present: int) -> int:
    count = min(_USUAL_BLOCKS, present) if wanted is None else wanted
    if not 0 <= count <= present:
        raise ValueError(f"`{name}` is {count}; expected a number from 0 to {present}, the blocks that are copied.")
    return count


@torch.no_grad()
def _copy_trunk(weights: Mapping[str, torch.Tensor], made: FluxControlNetModel) -> None:
    for name, parameter in made.named_parameters():
        if not name.startswith(_TRUNK):
            continue
        source = weights.get(name)
        if type(source) is not nn.Parameter or not source.is_floating_point():
            raise ValueError(
                f"`{name}` of the transformer is quantised, so a ControlNet cannot begin as its copy. Give the "
                f"unquantised transformer."
            )
        # A transformer with channels for a control image has wider inputs; the latents come first.
        parameter.copy_(source[:, : parameter.shape[1]] if name == "x_embedder.weight" else source)
