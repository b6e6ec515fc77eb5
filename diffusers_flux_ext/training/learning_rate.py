"""Learning rate by step number."""

import math


def warmup_flat_cosine(
    step: int, total: int, warmup: int = 100, flat_until: float = 0.4, final: float = 0.02
) -> float:
    """Return the factor of the learning rate: linear warm-up, a flat part, then half a cosine.

    Args:
        step (`int`): Number of the step, from 0.
        total (`int`): Number of steps.
        warmup (`int`, defaults to 100): Steps of the warm-up.
        flat_until (`float`, defaults to 0.4): Share of all steps after which the factor falls, in [0, 1).
        final (`float`, defaults to 0.02): Factor at the end, in [0, 1].

    Returns:
        `float`: in [0, 1].

    Raises:
        ValueError: if a number is out of range.
    """
    if total < 1 or warmup < 0 or not 0 <= flat_until < 1 or not 0 <= final <= 1:
        raise ValueError(
            f"`total` must be at least 1, `warmup` at least 0, `flat_until` in [0, 1) and `final` in [0, 1], got "
            f"{total}, {warmup}, {flat_until} and {final}."
        )
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = min(1.0, max(0.0, (step / total - flat_until) / (1 - flat_until)))
    return rise * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fall)))
