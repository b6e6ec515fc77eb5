"""Which blocks run again in the backward pass instead of keeping what they computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from ..offload.blocks import find_blocks
from ..offload.disk.stream import DiskStream, stream_of


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def checkpoint_blocks(transformer: Any, every: int = 1, offload: bool = False) -> None:
    """Let blocks of a transformer run again in the backward pass.

    Blocks that are streamed, from then on or already, all do: so each weight is there when its gradients are computed.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        every (`int`, defaults to 1): 1 for all blocks, 2 for every second one, and so on; 0 for none.
        offload (`bool`, defaults to `False`):
            Whether inputs of blocks that run again wait in host memory, which is pinned beside CUDA.

    Raises:
        ValueError: if `every` is negative.
    """
    if every < 0:
        raise ValueError(f"`every` must be 0 or more, got {every}.")
    if every == 0:
        transformer.disable_gradient_checkpointing()
        return
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for block in blocks[::every]}
    names = {id(block): name for name, block in find_blocks(transformer).items()}

    def run(block: torch.nn.Module, *args: Any) -> Any:
        stream = stream_of(transformer)
        if stream is not None and names[id(block)] in stream.names:
            return again(block, args, stream)
        return again(block, args, None) if id(block) in chosen else block(*args)

    def again(block: torch.nn.Module, args: tuple[Any, ...], stream: DiskStream | None) -> Any:
        def contexts() -> Contexts:
            return (nullcontext(), nullcontext()) if stream is None else (stream.heading(False), stream.heading(True))

        # What the block itself keeps is dropped inside, so only its inputs come here.
        with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
            return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)

    transformer.enable_gradient_checkpointing(run)
