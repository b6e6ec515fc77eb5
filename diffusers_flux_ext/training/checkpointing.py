"""Which blocks run again in the backward pass instead of keeping what they computed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(transformer: Any, every: int = 1) -> None:
    """Let blocks of a transformer run again in the backward pass.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        every (`int`, defaults to 1): 1 for all blocks, 2 for every second one, and so on; 0 for none.

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

    def run(block: torch.nn.Module, *args: Any) -> Any:
        if id(block) in chosen:
            return checkpoint(block.__call__, *args, use_reentrant=False)
        return block(*args)

    transformer.enable_gradient_checkpointing(run)
