"""An untrained LoRA-Encoder."""

from __future__ import annotations

from typing import Any

from .model import FluxLoRAEncoder


def lora_encoder(transformer: Any, **sizes: int) -> FluxLoRAEncoder:
    """Make an encoder with random weights for the LoRAs of a transformer.

    Args:
        transformer (`FluxTransformer2DModel`): Gives the blocks and the widths.
        sizes: Other arguments of [`FluxLoRAEncoder`]; the released ones by default.

    Returns:
        `FluxLoRAEncoder`
    """
    config = transformer.config
    fitted = {
        "num_layers": config.num_layers,
        "num_single_layers": config.num_single_layers,
        "inner_dim": transformer.inner_dim,
        "embed_dim": config.joint_attention_dim,
    }
    return FluxLoRAEncoder(**{**fitted, **sizes})
