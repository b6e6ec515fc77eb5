"""An untrained embedder of Redux."""

from __future__ import annotations

from typing import Any

from diffusers import ReduxImageEncoder


def image_embedder(transformer: Any, *, redux_dim: int = 1152) -> ReduxImageEncoder:
    """Make an embedder with random weights.

    Args:
        transformer (`FluxTransformer2DModel`): The width of its text is that of the tokens.
        redux_dim (`int`, defaults to 1152): Width of the image encoder's hidden states; 1152 for SigLIP so400m.

    Returns:
        `ReduxImageEncoder`
    """
    return ReduxImageEncoder(redux_dim=redux_dim, txt_in_features=transformer.config.joint_attention_dim)
