"""Which noise levels to train on: distributions, and draws from them that no split of a batch changes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from ..choices import Number, check_names, choose, read_numbers
from ..draws import Draws
from .distributions import DISTRIBUTIONS, resolution_shift, shifted


# Sizes at which a range is checked against a shift that depends on the size: 256 x 256 and 2048 x 2048 pixels.
_CHECKED_TOKENS = (256, 16384)
_BISECTIONS = 60
_SHIFT = Number(1.0, 0, 1000, open_low=True)
_RANGE = {"low": Number(0.0, 0, 1), "high": Number(1.0, 0, 1)}


class Levels(Protocol):
    """A distribution of noise levels."""

    def quantile(self, u: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return the noise levels below which shares `u` of all draws lie.

        Args:
            u (`torch.Tensor`): Shares in (0, 1), float64.
            num_tokens (`int`): Tokens of the image that is trained on, for distributions that depend on its size.

        Returns:
            `torch.Tensor` of the same shape: in [0, 1], 1 is pure noise; float64.
        """
        ...


@dataclass(frozen=True)
class ShiftedLevels:
    """A distribution by name, shifted towards noise and cut to a range; made by [`levels`].

    Args:
        name (`str`): A key of `DISTRIBUTIONS`.
        numbers (`tuple[tuple[str, float], ...]`): Its numbers.
        shift (`float` or `"resolution"`, *optional*): The shift; `"resolution"` is FLUX.1's by the image's size.
        low (`float`, defaults to 0.0): Lower levels are not drawn.
        high (`float`, defaults to 1.0): Higher levels are not drawn.
    """

    name: str
    numbers: tuple[tuple[str, float], ...] = ()
    shift: float | Literal["resolution"] | None = None
    low: float = 0.0
    high: float = 1.0

    def quantile(self, u: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return the noise levels below which shares `u` of all draws lie.

        Args:
            u (`torch.Tensor`): Shares in (0, 1), float64.
            num_tokens (`int`): Tokens of the image, read if the shift is `"resolution"`.

        Returns:
            `torch.Tensor` of the same shape: in [low, high], float64.
        """
        u = u.double()
        if (self.low, self.high) == (0, 1):
            return self._whole(u, num_tokens)
        start, end = _shares(self, num_tokens)
        return self._whole(start + (end - start) * u, num_tokens).clamp(self.low, self.high)

    def _whole(self, u: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return the quantiles of the distribution that is not cut."""
        sigma = DISTRIBUTIONS[self.name].quantile(u, **dict(self.numbers))
        if self.shift is None:
            return sigma
        return shifted(sigma, resolution_shift(num_tokens) if self.shift == "resolution" else self.shift)


@functools.lru_cache(maxsize=256)
def _shares(levels: ShiftedLevels, num_tokens: int) -> tuple[float, float]:
    """Return which shares of all draws lie below `low`, and up to `high`."""
    bounds = torch.tensor([levels.low, levels.high], dtype=torch.float64)
    below, above = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        sigma = levels._whole(middle, num_tokens)
        reached = torch.stack([sigma[0] < bounds[0], sigma[1] <= bounds[1]])
        below, above = torch.where(reached, middle, below), torch.where(reached, above, middle)
    start = 0.0 if levels.low == 0 else float(above[0])
    return start, 1.0 if levels.high == 1 else float(below[1])


def levels(name: str = "logit_normal", **options: Any) -> ShiftedLevels:
    """Choose a distribution of noise levels.

    `sigma` is the noise level, 1 is pure noise. `u` is uniform in (0, 1).

    | name | levels | options |
    |---|---|---|
    | `"reference"` | DiffSynth-Studio's grid of 1000 levels with a shift of 3, equally likely | |
    | `"uniform"` | `u` | |
    | `"logit_normal"` | `sigmoid(mean + std * normal)` | `mean` 0, `std` 1 |
    | `"mode"` | `u - scale * (sin(pi * u / 2) ** 2 - u)` | `scale` 1.29 |
    | `"cosmap"` | `tan(pi * u / 2) / (1 + tan(pi * u / 2))` | |
    | `"beta"` | Beta(`alpha`, `beta`) | `alpha` 2, `beta` 2, both at least 0.5 |
    | `"content"` | `1 - u ** 3`, mostly high noise | |
    | `"style"` | `u ** 3`, mostly low noise | |

    Args:
        name (`str`, defaults to `"logit_normal"`): See the table.
        options (`float`):
            Those of the table, and for any distribution `shift` (a number, or `"resolution"` for FLUX.1's shift by
            the size of the image) and `low` and `high`: levels outside of this range are never drawn, those inside
            are as likely to each other as without it.

    Returns:
        `ShiftedLevels`

    Raises:
        ValueError: if a name is not known, a number is out of range, or no level lies in the range.
    """
    distribution = choose(DISTRIBUTIONS, name, "distribution of noise levels")
    known = [*distribution.numbers, "shift", *_RANGE]
    check_names(options, known, f"the levels {name!r}")
    numbers = {key: value for key, value in options.items() if key in distribution.numbers}
    shift = options.get("shift")
    if isinstance(shift, str) and shift != "resolution":
        raise ValueError(f"`shift` must be a number above 0 or 'resolution', got {shift!r}.")
    if shift is not None and shift != "resolution":
        _SHIFT.check("shift", shift)
    ends = read_numbers({key: options[key] for key in _RANGE if key in options}, _RANGE, f"the levels {name!r}")
    made = ShiftedLevels(name, tuple(read_numbers(numbers, distribution.numbers, name).items()), shift, **ends)
    _check_range(made)
    return made


def _check_range(made: ShiftedLevels) -> None:
    if made.low >= made.high:
        raise ValueError(f"`low` must be below `high`, got {made.low} and {made.high}.")
    if (made.low, made.high) == (0, 1):
        return
    for num_tokens in _CHECKED_TOKENS:
        start, end = _shares(made, num_tokens)
        if end - start < 1e-6:
            raise ValueError(
                f"Practically no noise level of {made.name!r} lies between `low` {made.low} and `high` {made.high} "
                f"(at {num_tokens} tokens). Widen the range or choose another distribution."
            )


def draw_levels(
    levels: Levels,
    draws: Draws,
    step: int,
    positions: Sequence[int],
    total: int,
    num_tokens: int,
    stratified: bool = True,
) -> torch.Tensor:
    """Draw noise levels for some samples of an update.

    A level depends on the seed, the update and the sample's position in it alone. So processes and parts of a batch
    draw together what one process draws at once.

    Args:
        levels (`Levels`): The distribution.
        draws (`Draws`): The run's randomness.
        step (`int`): Number of the update.
        positions (`Sequence[int]`): Positions of the samples in the update's batch, over all processes and parts.
        total (`int`): Number of samples of the update, over all processes and parts.
        num_tokens (`int`): Tokens of the image.
        stratified (`bool`, defaults to `True`):
            Whether each of `total` slices of equal probability gives one level to the update. Every sample has the
            same distribution as without it; the loss of an update varies less.

    Returns:
        `torch.Tensor` of shape `(len(positions),)`: in [0, 1], 1 is pure noise; float32, on the CPU.

    Raises:
        ValueError: if a position is not in `range(total)`.
    """
    outside = [position for position in positions if not 0 <= position < total]
    if outside:
        raise ValueError(f"`positions` must be in range({total}), got {outside}.")
    shares = [float(draws.uniform("level", step, position)) for position in positions]
    u = torch.tensor(shares, dtype=torch.float64)
    if stratified:
        slices = draws.permutation("slices of levels", step, length=total)
        u = (torch.tensor([slices[position] for position in positions], dtype=torch.float64) + u) / total
    return levels.quantile(u.clamp(1e-12, 1 - 1e-12), num_tokens).float()


def round_to(sigma: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round noise levels to what the transformer gets to see in its data type.

    It casts them to the type of its hidden states and multiplies by 1000 there: in bfloat16 617.25 becomes 616. Noise
    that is mixed with the rounded level agrees with the timestep that the model is told, and rounding again changes
    nothing.

    Args:
        sigma (`torch.Tensor`): Noise levels in [0, 1].
        dtype (`torch.dtype`): The data type of the transformer's hidden states.

    Returns:
        `torch.Tensor` of the same shape and data type.
    """
    if torch.finfo(dtype).bits > 16:
        return sigma
    return (sigma.to(dtype) * 1000).to(sigma.dtype) / 1000
