"""A frozen transformer whose blocks come to the device one after another, in both passes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..offload.disk.held import stream_from_memory
from ..offload.disk.plan import block_bytes, choose_blocks, split_weights
from ..offload.disk.stream import DiskStream, stream_of
from ..offload.disk.streaming import stream_from_disk
from ..offload.disk.weights import spread


def stream_blocks(
    transformer: Any, device: torch.device, resident: int, folder: str | os.PathLike[str] | None = None
) -> DiskStream | None:
    """Keep some blocks of a frozen transformer on a device, and stream the others whenever they run.

    Only matrices of blocks are streamed: adapters, biases, norms and what is outside of the blocks stay. While a block
    computes, the next one is copied, in the backward pass the one before; so two more blocks are there at most. The
    blocks have to run again in the backward pass, which [`checkpoint_blocks`] sees to.

    Args:
        transformer (`FluxTransformer2DModel`):
            The model, on the CPU, with or without adapters. It is on the device afterwards.
        device (`torch.device`): Where it computes.
        resident (`int`): Bytes of blocks that stay there, spread evenly over all blocks.
        folder (`str` or `os.PathLike`, *optional*):
            Folder that the other blocks are written to and read from; they stay in host memory by default.

    Returns:
        `DiskStream`, or `None` if all blocks stay.

    Raises:
        ValueError: if a weight of a streamed block is trained, or something else moves the weights already.
    """
    sizes = block_bytes(transformer)
    stays = spread(list(sizes.values()), resident)
    streamed = [name for name, kept in zip(sizes, stays, strict=True) if not kept]
    if not streamed:
        transformer.to(device)
        return None
    for slots in split_weights(transformer, choose_blocks(transformer, streamed))[0].values():
        if trained := [slot.key for slot in slots if slot.tensor.requires_grad]:
            raise ValueError(
                f"Blocks that are streamed must be frozen, but `{trained[0]}` is trained. Freeze it and train a LoRA, "
                f"or keep all blocks on the device."
            )
    if folder is None:
        return stream_from_memory(transformer, device, streamed)
    Path(folder).mkdir(parents=True, exist_ok=True)
    stream_from_disk(transformer, onload_device=device, blocks=streamed, offload_dir=folder)
    return stream_of(transformer)


def describe_streaming(stream: DiskStream | None, resident: int) -> str:
    """Return how many blocks are streamed, and how many bytes, in words."""
    if stream is None:
        return "All blocks stay on the device; none is streamed."
    total = sum(block.size for block in stream.blocks)
    source = "host memory" if all(block.kept is not None for block in stream.blocks) else "disk"
    return (
        f"{len(stream.blocks)} blocks are streamed from {source}, {total / 1e9:.2f} GB in each pass of a batch, "
        f"beside {resident / 1e9:.2f} GB that may stay."
    )
