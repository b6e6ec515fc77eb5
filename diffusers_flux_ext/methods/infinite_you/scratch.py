"""Untrained modules of InfiniteYou."""

from __future__ import annotations

from typing import Any

from diffusers import FluxControlNetModel

from ..control.scratch import controlnet
from .projector import InfiniteYouImageProjector


def infuse_net(
    transformer: Any, *, num_layers: int | None = None, num_single_layers: int | None = None
) -> FluxControlNetModel:
    """Copy the first blocks of a transformer into an InfuseNet, a ControlNet that sees identities instead of text.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        num_layers (`int`, *optional*): Double blocks; 4 by default, as released, or all if there are fewer.
        num_single_layers (`int`, *optional*): Single blocks; 4 by default, or all if there are fewer. Released: 10.

    Returns:
        `FluxControlNetModel`: in float32; its outputs are zero, so it changes nothing until the first update.

    Raises:
        ValueError: if the transformer has fewer blocks, or its weights are quantised.
    """
    return controlnet(transformer, num_layers=num_layers, num_single_layers=num_single_layers)


def image_projector(transformer: Any, **sizes: int) -> InfiniteYouImageProjector:
    """Make a projector with random weights.

    Args:
        transformer (`FluxTransformer2DModel`): The width of its text is that of the tokens.
        sizes: Other arguments of [`InfiniteYouImageProjector`]; the released ones by default.

    Returns:
        `InfiniteYouImageProjector`
    """
    return InfiniteYouImageProjector(**{"output_dim": transformer.config.joint_attention_dim, **sizes})
