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


def text_group(
    name: str, tokens: torch.Tensor, step: DenoisingStep, in_prompt: bool | torch.Tensor = False
) -> TokenGroup:
    """Make a text group of tokens, at position zero like all text.

    Args:
        name (`str`): The group's name.
        tokens (`torch.Tensor` of shape `(1 or batch_size, length, width)`): Its tokens.
        step (`DenoisingStep`): Gives the device and the data type of positions.
        in_prompt (`bool` or `torch.Tensor`, defaults to `False`): See [`TokenGroup`].

    Returns:
        `TokenGroup`
    """
    return TokenGroup(name, tokens, step.prompt.ids.new_zeros(tokens.shape[1], 3), in_prompt)
