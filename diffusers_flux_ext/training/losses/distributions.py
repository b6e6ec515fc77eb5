"""Distributions of the noise level, each as its inverse distribution function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..choices import Number


# The smallest level of the reference's grid before its shift of 3, and its number of levels.
_REFERENCE_END, _REFERENCE_STEPS, _REFERENCE_SHIFT = 0.003 / 1.002, 1000, 3.0
# Beyond it the map of "mode" falls somewhere, and is not an inverse distribution function any more.
_LARGEST_MODE = 2 / (math.pi - 2)
_BETA_INTERVALS = 8192


@dataclass(frozen=True)
class Distribution:
    """One distribution of noise levels.

    Args:
        quantile (`Callable`): Takes `u` in (0, 1), float64, and the numbers by name; does not fall with `u`.
        numbers (`Mapping[str, Number]`): What can be chosen.
    """

    quantile: Callable[..., torch.Tensor]
    numbers: Mapping[str, Number] = field(default_factory=dict)


def shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Return `shift * sigma / (1 + (shift - 1) * sigma)`."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def resolution_shift(num_tokens: int) -> float:
    """Return FLUX.1's shift for an image of so many tokens: `exp(mu)`, with `mu` linear in their number.

    Args:
        num_tokens (`int`): Tokens of the image, 4096 at 1024 x 1024 pixels.

    Returns:
        `float`: 1.65 for 256 tokens, 3.16 for 4096.
    """
    return math.exp(0.5 + 0.65 * (num_tokens - 256) / 3840)


@functools.cache
def reference_grid() -> torch.Tensor:
    """Return the 1000 levels that DiffSynth-Studio trains FLUX.1 on, rising, float64."""
    linear = torch.linspace(_REFERENCE_END, 1, _REFERENCE_STEPS, dtype=torch.float64)
    return shifted(linear, _REFERENCE_SHIFT)


def _reference(u: torch.Tensor) -> torch.Tensor:
    index = (u * _REFERENCE_STEPS).long().clamp(0, _REFERENCE_STEPS - 1)
    return reference_grid()[index]


def _uniform(u: torch.Tensor) -> torch.Tensor:
    return u


def _logit_normal(u: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def _mode(u: torch.Tensor, scale: float) -> torch.Tensor:
    return u - scale * (torch.sin(math.pi / 2 * u) ** 2 - u)


def _cosmap(u: torch.Tensor) -> torch.Tensor:
    sine, cosine = torch.sin(math.pi / 2 * u), torch.cos(math.pi / 2 * u)
    return sine / (sine + cosine)


def _content(u: torch.Tensor) -> torch.Tensor:
    return 1 - (1 - u) ** 3


def _style(u: torch.Tensor) -> torch.Tensor:
    return u**3


def _beta(u: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    angles, shares = _beta_table(alpha, beta)
    above = torch.searchsorted(shares, u.contiguous()).clamp(1, len(shares) - 1)
    low, high = shares[above - 1], shares[above]
    part = ((u - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return torch.sin(angles[above - 1] + part * (angles[above] - angles[above - 1])) ** 2


@functools.lru_cache(maxsize=8)
def _beta_table(alpha: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return angles and the distribution function of Beta at `sin(angle) ** 2`, by Simpson's rule.

    In the angle the density has no poles as long as both numbers are 1/2 or more.
    """
    fine = torch.linspace(0, math.pi / 2, 2 * _BETA_INTERVALS + 1, dtype=torch.float64)
    logs = (2 * alpha - 1) * fine.sin().log() + (2 * beta - 1) * fine.cos().clamp(min=0).log()
    logs[0] = 0.0 if alpha == 0.5 else -math.inf
    logs[-1] = 0.0 if beta == 0.5 else -math.inf
    density = torch.exp(logs - logs.max())
    areas = density[:-2:2] + 4 * density[1::2] + density[2::2]
    shares = torch.cat([torch.zeros(1, dtype=torch.float64), areas.cumsum(0)])
    return fine[::2], shares / shares[-1]


_SHAPE = Number(2.0, low=0.5, high=1000.0)

DISTRIBUTIONS: dict[str, Distribution] = {
    "reference": Distribution(_reference),
    "uniform": Distribution(_uniform),
    "logit_normal": Distribution(
        _logit_normal, {"mean": Number(0.0, -20, 20), "std": Number(1.0, 0, 20, open_low=True)}
    ),
    "mode": Distribution(_mode, {"scale": Number(1.29, -1, _LARGEST_MODE)}),
    "cosmap": Distribution(_cosmap),
    "beta": Distribution(_beta, {"alpha": _SHAPE, "beta": _SHAPE}),
    "content": Distribution(_content),
    "style": Distribution(_style),
}
