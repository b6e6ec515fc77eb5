"""Predicted peaks of memory, by stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..frozen import planned_bytes
from .activations import Activations


@dataclass(frozen=True)
class Setting:
    """What can be chosen to make a run smaller.

    Args:
        storage (`str`, *optional*): How the frozen blocks are kept; see [`store_frozen`].
        checkpointing (`int`): Every how many blocks run again in the backward pass; 0 for none.
        batch_size (`int`): Samples of a batch.
        cache (`bool`): Whether samples are encoded beforehand, so that encoders leave memory.
    """

    storage: str | None = None
    checkpointing: int = 0
    batch_size: int = 1
    cache: bool = True


@dataclass(frozen=True)
class Needs:
    """Bytes of a training step, by what takes them.

    Args:
        weights (`int`): The transformer.
        trained (`int`): Trained values, gradients and moments.
        encoders (`int`): Encoders that stay in memory.
        activations (`int`): What the forward pass keeps.
        working (`int`): What one block takes besides, while its gradient is computed.
    """

    weights: int
    trained: int
    encoders: int
    activations: int
    working: int

    @property
    def peak(self) -> int:
        """The sum."""
        return self.weights + self.trained + self.encoders + self.activations + self.working


def predict(
    transformer: Any, activations: Activations, setting: Setting, dtype: torch.dtype, trained: int, encoders: int
) -> Needs:
    """Predict what a training step takes.

    Args:
        transformer (`FluxTransformer2DModel`): The model, on the meta device.
        activations (`Activations`): What it keeps for a sample.
        setting (`Setting`): The setting.
        dtype (`torch.dtype`): Data type of the model.
        trained (`int`): Bytes of trained values, gradients and moments.
        encoders (`int`): Bytes of all encoders.

    Returns:
        `Needs`
    """
    doubles, singles = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    every, total = setting.checkpointing, doubles + singles
    again = set(range(0, total, every)) if every else set[int]()
    kept = sum(activations.double_input if place in again else activations.double for place in range(doubles))
    kept += sum(activations.single_input if place in again else activations.single for place in range(doubles, total))
    # A block that runs again keeps everything for its own backward pass, and the gradients of the largest tensors
    # are there twice: that which comes in, and that which goes out.
    working = (activations.largest_block if again else 0) + 2 * activations.largest
    return Needs(
        weights=planned_bytes(transformer, setting.storage, dtype),
        trained=trained,
        encoders=0 if setting.cache else encoders,
        activations=setting.batch_size * (activations.outside + kept),
        working=setting.batch_size * working + raised_bytes(transformer, setting.storage, dtype),
    )


def raised_bytes(transformer: Any, storage: str | None, dtype: torch.dtype) -> int:
    """Return what the largest layer of a block takes while its weight is raised from fewer bits.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        storage (`str`, *optional*): How it is stored.
        dtype (`torch.dtype`): What it is raised to.

    Returns:
        `int`
    """
    if storage is None:
        return 0
    largest = max(
        math.prod(layer.weight.shape)
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        for layer in block.modules()
        if isinstance(layer, torch.nn.Linear)
    )
    # Eight bits are raised through two float32 copies.
    return largest * (dtype.itemsize + (8 if storage == "fp8" else 0))
