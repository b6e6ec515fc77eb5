"""Combining the velocities of the conditional and the unconditional branch."""

import torch


def combine_velocities(cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float) -> torch.Tensor:
    """Classifier-free guidance ([paper](https://huggingface.co/papers/2207.12598)) on velocities.

    Args:
        cond (`torch.Tensor` of shape `(batch_size, target_length, channels)`): Velocity with the prompt.
        uncond (`torch.Tensor` of the same shape): Velocity with the negative prompt.
        true_cfg_scale (`float`): 1 keeps `cond`, 0 keeps `uncond`.

    Returns:
        `torch.Tensor` of the same shape.
    """
    return uncond + true_cfg_scale * (cond - uncond)
