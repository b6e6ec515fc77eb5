"""Wider inputs of the transformer, for control images and masks."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


INPUT_CHANNELS = {"control": 128, "fill": 384, "flex": 196}
"""Input channels of the published models with further channels: FLUX.1 Control, FLUX.1 Fill and Flex.2."""


@torch.no_grad()
def widen_x_embedder(transformer: Any, channels: int | str) -> None:
    """Let the transformer take further channels beside the latents, with weights of zero for them.

    Until the first update the further channels change nothing.

    Args:
        transformer (`FluxTransformer2DModel`): The model, without adapters on `x_embedder`; changed in place.
        channels (`int` or `str`): Channels in all, or one of `INPUT_CHANNELS`: `"control"`, `"fill"`, `"flex"`.

    Raises:
        ValueError: if it is a name that is not known, there are as many channels already, or `x_embedder` has an
            adapter or is quantised.
    """
    if isinstance(channels, str) and channels not in INPUT_CHANNELS:
        raise ValueError(f"`channels` is {channels!r}; expected a number or one of {INPUT_CHANNELS}.")
    wanted = INPUT_CHANNELS[channels] if isinstance(channels, str) else channels
    old = transformer.x_embedder
    if isinstance(old, BaseTunerLayer) or type(old) is not nn.Linear or type(old.weight) is not nn.Parameter:
        raise ValueError(
            f"`x_embedder` is a {type(old).__name__}; only a plain Linear can be widened. Widen the unquantised "
            f"model, before adapters are added."
        )
    if wanted <= old.in_features:
        raise ValueError(f"`channels` is {wanted}, but `x_embedder` takes {old.in_features} already. Give more.")
    new = nn.Linear(wanted, old.out_features, bias=old.bias is not None, device=old.weight.device)
    new.to(old.weight.dtype)
    new.weight.zero_()
    new.weight[:, : old.in_features] = old.weight
    if old.bias is not None:
        new.bias.copy_(old.bias)
    out = transformer.config.out_channels or transformer.config.in_channels
    transformer.x_embedder = new
    transformer.register_to_config(in_channels=wanted, out_channels=out)
