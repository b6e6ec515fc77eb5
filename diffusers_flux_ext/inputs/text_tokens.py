"""What conditions that add text tokens share."""

from __future__ import annotations

from typing import Any

import torch

from ..denoise import DenoisingStep
from ..sequence import TokenGroup


def check_text_width(owner: str, width: int, transformer: Any) -> None:
    """Raise a `ValueError` unless tokens of this width are as wide as the transformer's text."""
    expected = transformer.config.joint_attention_dim
    if width != expected:
        raise ValueError(
            f"The encoder of {owner} makes tokens of width {width}, but the transformer's text is {expected} wide. "
            f"Use an encoder that was trained for this transformer."
        )


def text_group(name: str, tokens: torch.Tensor, step: DenoisingStep) -> TokenGroup:
    """Tokens `(1 or batch_size, length, width)` as a text group, at position zero like all text."""
    return TokenGroup(name, tokens, step.prompt.ids.new_zeros(tokens.shape[1], 3))
