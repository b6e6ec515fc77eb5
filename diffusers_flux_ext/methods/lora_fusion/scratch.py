"""Untrained gates of LoRA-Fusion."""

from __future__ import annotations

from typing import Any

from .gates import FluxLoRAFusion


def lora_fusion(transformer: Any) -> FluxLoRAFusion:
    """Make gates with random weights for the layers of a transformer.

    Args:
        transformer (`FluxTransformer2DModel`): Gives the blocks and the width.

    Returns:
        `FluxLoRAFusion`
    """
    config = transformer.config
    return FluxLoRAFusion(config.num_layers, config.num_single_layers, transformer.inner_dim)
