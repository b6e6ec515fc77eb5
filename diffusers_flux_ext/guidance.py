"""Combining the velocities of the conditional and the unconditional branch."""

import torch


def combine_velocities(
    cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float, norm_power: float | None = None
) -> torch.Tensor:
    """Apply classifier-free guidance ([paper](https://huggingface.co/papers/2207.12598)) on velocities.

    Args:
        cond (`torch.Tensor` of shape `(batch_size, target_length, channels)`): Velocity with the prompt.
        uncond (`torch.Tensor` of the same shape): Velocity with the negative prompt.
        true_cfg_scale (`float`): 1 keeps `cond`, 0 keeps `uncond`.
        norm_power (`float`, *optional*):
            Shrink large differences between the two, as Step1X-Edit does in its first steps: where a token's
            difference has a norm n above 1 over its channels, it is divided by n to this power, 0.4 there. Off by
            default.

    Returns:
        `torch.Tensor` of the same shape.
    """
    difference = cond - uncond
    if norm_power is not None:
        difference = difference / difference.norm(dim=-1, keepdim=True).clamp(min=1) ** norm_power
    return uncond + true_cfg_scale * difference
