"""The Euler sampler with a gradient, which keeps the latents of each step and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch.utils.checkpoint import checkpoint


Velocity = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Maps latents, noise levels of shape `(batch_size,)` and the number of the step to the velocity."""


def sample_through(latents: torch.Tensor, schedule: torch.Tensor, velocity: Velocity) -> torch.Tensor:
    """Run the steps of a sampler so that a gradient flows through all of them.

    Each step runs again in the backward pass as a whole, so that memory grows by the latents of a step, not by its
    activations.

    Args:
        latents (`torch.Tensor` of shape `(batch_size, length, channels)`): Where it starts.
        schedule (`torch.Tensor` of shape `(steps + 1,)`): Noise levels, falling.
        velocity (`Callable`): The model; it must compute the same when it is called again.

    Returns:
        `torch.Tensor` of the shape of `latents`, float32 or wider.
    """
    latents = latents.to(torch.promote_types(latents.dtype, torch.float32))
    for index, (level, following) in enumerate(pairwise(schedule)):
        levels = level.expand(latents.shape[0])
        moved = checkpoint(velocity, latents, levels, index, use_reentrant=False)
        latents = latents + (following - level).to(latents) * moved.to(latents)
    return latents
