"""Weights of the loss by noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..choices import Number, choose, read_numbers
from .distributions import reference_grid
from .levels import Levels


# The smallest level of diffusers' table of 1000, below which the weight 1 / sigma ** 2 stays as it is.
_SMALLEST_LEVEL = 1e-3
_QUANTILES = 8192


class Weighting(Protocol):
    """A weight of the loss for each noise level."""

    def __call__(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the weights.

        Args:
            sigma (`torch.Tensor`): Noise levels in [0, 1].

        Returns:
            `torch.Tensor` of the same shape.
        """
        ...


@dataclass(frozen=True)
class ScaledWeighting:
    """A weight by name, times a constant; made by [`weighting`].

    Args:
        name (`str`): A key of `WEIGHTINGS`.
        numbers (`tuple[tuple[str, float], ...]`): Its numbers.
        factor (`float`, defaults to 1.0): The constant.
    """

    name: str
    numbers: tuple[tuple[str, float], ...] = ()
    factor: float = 1.0

    def __call__(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the weights.

        Args:
            sigma (`torch.Tensor`): Noise levels in [0, 1].

        Returns:
            `torch.Tensor` of the same shape.
        """
        return self.factor * WEIGHTINGS[self.name].formula(sigma, **dict(self.numbers))


@dataclass(frozen=True)
class Formula:
    """How a weighting is computed.

    Args:
        formula (`Callable`): Takes noise levels and the numbers by name.
        numbers (`Mapping[str, Number]`): What can be chosen.
        normalised (`bool`, defaults to `False`): Whether it is scaled to a mean of 1 over the draws.
    """

    formula: Callable[..., torch.Tensor]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    normalised: bool = False


def _bell(sigma: torch.Tensor) -> torch.Tensor:
    return torch.exp(-2 * (sigma - 0.5) ** 2) - math.exp(-0.5)


_BELL_FACTOR = 1 / float(_bell(reference_grid()).mean())


def _scaled_bell(sigma: torch.Tensor) -> torch.Tensor:
    return _BELL_FACTOR * _bell(sigma)


def _cosmap(sigma: torch.Tensor) -> torch.Tensor:
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


def _sigma_sqrt(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.clamp(min=_SMALLEST_LEVEL) ** -2


def _min_snr(sigma: torch.Tensor, gamma: float) -> torch.Tensor:
    return torch.minimum((1 - sigma) ** 2, gamma * sigma**2)


WEIGHTINGS: dict[str, Formula] = {
    "none": Formula(torch.ones_like),
    "bell": Formula(_scaled_bell),
    "cosmap": Formula(_cosmap),
    "sigma_sqrt": Formula(_sigma_sqrt),
    "min_snr": Formula(_min_snr, {"gamma": Number(5.0, 0, 1e6, open_low=True)}, normalised=True),
}


def weighting(
    name: str = "none", levels: Levels | None = None, num_tokens: int = 4096, **options: Any
) -> ScaledWeighting:
    """Choose a weight of the loss by noise level `sigma`.

    | name | weight | mean |
    |---|---|---|
    | `"none"` | 1 | 1 |
    | `"bell"` | `4.5603 * (exp(-2 * (sigma - 0.5) ** 2) - exp(-0.5))`, DiffSynth-Studio's | 1 over its own levels |
    | `"cosmap"` | `2 / (pi * (1 - 2 * sigma + 2 * sigma ** 2))` | 1 over uniform levels |
    | `"sigma_sqrt"` | `1 / sigma ** 2`, constant below 0.001 | not normalised |
    | `"min_snr"` | `min((1 - sigma) ** 2, gamma * sigma ** 2)`, `gamma` 5 | 1 over `levels` |

    Args:
        name (`str`, defaults to `"none"`): See the table.
        levels (`Levels`, *optional*): The levels that are drawn, over which `"min_snr"` is normalised.
        num_tokens (`int`, defaults to 4096): Tokens of the image, for levels that depend on its size.
        options (`float`): Those of the table.

    Returns:
        `ScaledWeighting`: a function of noise levels.

    Raises:
        ValueError: if a name is not known, a number is out of range, or `levels` are needed and not given.
    """
    chosen = choose(WEIGHTINGS, name, "weighting")
    numbers = tuple(read_numbers(options, chosen.numbers, f"the weighting {name!r}").items())
    plain = ScaledWeighting(name, numbers)
    if not chosen.normalised:
        return plain
    if levels is None:
        raise ValueError(f"The weighting {name!r} has mean 1 over the levels that are drawn: pass `levels`.")
    mean = float(plain(quantiles(levels, num_tokens)).mean())
    if mean < 1e-12:
        raise ValueError(f"The weighting {name!r} is zero at practically all levels: widen their range.")
    return ScaledWeighting(name, numbers, 1 / mean)


def quantiles(levels: Levels, num_tokens: int, count: int = _QUANTILES) -> torch.Tensor:
    """Return noise levels in the middle of slices of equal probability.

    Args:
        levels (`Levels`): The distribution.
        num_tokens (`int`): Tokens of the image.
        count (`int`, defaults to 8192): How many slices.

    Returns:
        `torch.Tensor` of shape `(count,)`: rising, float64.
    """
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return levels.quantile(u, num_tokens)
