"""Which noise levels to train on."""

import torch

from .losses import levels
from .losses.distributions import shifted


def sample_timesteps(
    batch_size: int,
    shift: float = 3.0,
    uniform_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample logit-normal timesteps, shifted towards noise and spread evenly over the batch.

    One draw is made in each of `batch_size` slices of equal probability, which lowers the variance of the loss and
    leaves the distribution of every sample as it is. [`draw_levels`] knows further distributions, and draws that do
    not depend on how a batch is split.

    Args:
        batch_size (`int`): How many.
        shift (`float`, defaults to 3.0): Above 1 favours high noise: `shift * t / (1 + (shift - 1) * t)`.
        uniform_share (`float`, defaults to 0.0): Share drawn uniformly before the shift, in [0, 1].
        generator (`torch.Generator`, *optional*): Source of randomness, on the CPU.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`: in (0, 1), 1 is pure noise; on the CPU.

    Raises:
        ValueError: if `batch_size` or `shift` is not positive, or `uniform_share` not in [0, 1].
    """
    if batch_size < 1 or shift <= 0 or not 0 <= uniform_share <= 1:
        raise ValueError(
            f"`batch_size` and `shift` must be positive and `uniform_share` in [0, 1], got {batch_size}, "
            f"{shift} and {uniform_share}."
        )
    slices = torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)
    quantiles = (slices / batch_size).clamp(1e-4, 1 - 1e-4)
    timesteps = levels("logit_normal").quantile(quantiles, 0).float()
    uniform = torch.rand(batch_size, generator=generator)
    timesteps = torch.where(torch.rand(batch_size, generator=generator) < uniform_share, uniform, timesteps)
    return shifted(timesteps, shift)
