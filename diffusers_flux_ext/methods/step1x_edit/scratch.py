"""An untrained connector of Step1X-Edit, and its weights as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from ...checkpoints.layouts import CONNECTOR
from .checkpoint import OURS, RELEASED_HEAD_DIM
from .connector import Step1XConnector


_VERSIONS: dict[str, dict[str, Any]] = {
    "1.0": {"scale_pooled": True, "timestep_scale": 1.0, "reference_offset": 0},
    "1.1": {"scale_pooled": False, "timestep_scale": 1000.0, "reference_offset": 1},
}
_PUBLISHED = {ours: published for published, ours in OURS.items()}


def connector(transformer: Any, *, version: Literal["1.0", "1.1"] = "1.1", **sizes: Any) -> Step1XConnector:
    """Make a connector with random weights; the transformer has to be trained with it.

    Args:
        transformer (`FluxTransformer2DModel`): Gives the widths of its text and of the pooled prompt.
        version (`"1.0"` or `"1.1"`, defaults to `"1.1"`): What the two released versions differ in.
        sizes: Other arguments of [`Step1XConnector`]; the released ones by default.

    Returns:
        `Step1XConnector`

    Raises:
        ValueError: if the version is unknown, or the heads do not fill the width.
    """
    if version not in _VERSIONS:
        raise ValueError(f"`version` of Step1X-Edit's connector is {version!r}; expected one of {list(_VERSIONS)}.")
    config = transformer.config
    fitted = {
        "hidden_size": config.joint_attention_dim,
        "num_attention_heads": max(1, config.joint_attention_dim // RELEASED_HEAD_DIM),
        "pooled_dim": config.pooled_projection_dim,
    }
    return Step1XConnector(**{**fitted, **_VERSIONS[version], **sizes})


def files(module: Step1XConnector, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the connector with the keys that it has in the published files; see [`Trainable`]."""
    return {"connector.safetensors": {CONNECTOR + _spell(key): tensor for key, tensor in tensors.items()}}


def _spell(key: str) -> str:
    parts = key.split(".")
    if parts[0] != "blocks":
        return _PUBLISHED[key]
    return _PUBLISHED[".".join(["blocks", "{}", *parts[2:]])].format(parts[1])
