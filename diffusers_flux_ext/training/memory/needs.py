"""Predicted peaks of memory, by stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...offload.disk.weights import spread
from ..frozen import BYTES, planned_bytes
from .activations import Activations


@dataclass(frozen=True)
class Setting:
    """What can be chosen to make a run smaller.

    Args:
        storage (`str`, *optional*): How the frozen blocks are kept; see [`store_frozen`].
        checkpointing (`int`): Every how many blocks run again in the backward pass; 0 for none.
        batch_size (`int`): Samples of a batch.
        cache (`bool`): Whether samples are encoded beforehand, so that encoders leave memory.
        offload (`bool`): Whether inputs of blocks that run again wait in host memory.
        resident (`int`, *optional*): Bytes of blocks that stay on the GPU, if the others are streamed.
    """

    storage: str | None = None
    checkpointing: int = 0
    batch_size: int = 1
    cache: bool = True
    offload: bool = False
    resident: int | None = None


@dataclass(frozen=True)
class Needs:
    """Bytes of a training step, by what takes them.

    Args:
        weights (`int`): The transformer, as far as it is there: of streamed blocks no more than two.
        trained (`int`): Trained values, gradients and moments.
        encoders (`int`): Encoders that stay in memory.
        activations (`int`): What the forward pass keeps.
        working (`int`): What one block takes besides, while its gradient is computed.
        moved (`int`): What is copied from and to host memory, which takes none of the GPU's.
    """

    weights: int
    trained: int
    encoders: int
    activations: int
    working: int
    moved: int = 0

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
    whole = [activations.double] * doubles + [activations.single] * singles
    inputs = [activations.double_input] * doubles + [activations.single_input] * singles
    kept = sum(whole[place] for place in range(total) if place not in again)
    waiting = [inputs[place] for place in again]
    # Of inputs in host memory, one block's are there at a time.
    kept += max(waiting, default=0) if setting.offload else sum(waiting)
    # A block that runs again keeps everything for its own backward pass, and the gradients of the largest tensors
    # are there twice: that which comes in, and that which goes out.
    working = (activations.largest_block if again else 0) + 2 * activations.largest
    streamed = streamed_bytes(transformer, setting, dtype)
    there = min(2, len(streamed)) * max(streamed, default=0)
    out = 2 * setting.batch_size * sum(waiting) if setting.offload else 0
    return Needs(
        weights=planned_bytes(transformer, setting.storage, dtype) - sum(streamed) + there,
        trained=trained,
        encoders=0 if setting.cache else encoders,
        activations=setting.batch_size * (activations.outside + kept),
        working=setting.batch_size * working + raised_bytes(transformer, setting.storage, dtype),
        # The last block is still there when the backward pass begins, and the first one when the next batch comes.
        moved=out + 2 * sum(streamed) - sum(streamed[-1:] + streamed[:1]),
    )


def streamed_bytes(transformer: Any, setting: Setting, dtype: torch.dtype) -> list[int]:
    """Return the bytes of each block that is streamed, in the order of the blocks.

    Args:
        transformer (`FluxTransformer2DModel`): The model, which may be on the meta device.
        setting (`Setting`): The setting.
        dtype (`torch.dtype`): Of weights that are not stored in fewer bits.

    Returns:
        `list[int]`
    """
    if setting.resident is None:
        return []
    size = dtype.itemsize if setting.storage is None else BYTES[setting.storage]
    sizes = [
        round(size * sum(each.numel() for each in block.parameters() if each.ndim > 1))
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    ]
    return [size for size, kept in zip(sizes, spread(sizes, setting.resident), strict=True) if not kept]


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
