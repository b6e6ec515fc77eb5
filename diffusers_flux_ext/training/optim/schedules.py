"""Factors of the learning rate by number of the update: pure functions, so that a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..choices import Number, choose, read_numbers


@dataclass(frozen=True)
class Shape:
    """How a factor falls after the warm-up.

    Args:
        formula (`Callable`): Takes the progress in [0, 1] and the numbers by name.
        numbers (`Mapping[str, Number]`): What can be chosen.
        whole (`bool`, defaults to `False`): Whether the progress counts from the first update, not from the warm-up.
    """

    formula: Callable[..., float]
    numbers: Mapping[str, Number] = field(default_factory=dict)
    whole: bool = False


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float, final: float) -> float:
    return final + (1 - final) * (1 - progress)


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _polynomial(progress: float, power: float, final: float) -> float:
    return final + (1 - final) * (1 - progress) ** power


def _restarts(progress: float, cycles: float, final: float) -> float:
    return final if progress >= 1 else _cosine(progress * cycles % 1, final)


def _rex(progress: float, final: float) -> float:
    return final + (1 - final) * (1 - progress) / (1 - progress / 2)


def _flat_cosine(progress: float, flat_until: float, final: float) -> float:
    return _cosine(max(0.0, (progress - flat_until) / (1 - flat_until)), final)


_FINAL = Number(0.0, 0, 1)

SHAPES: dict[str, Shape] = {
    "constant": Shape(_constant),
    "linear": Shape(_linear, {"final": _FINAL}),
    "cosine": Shape(_cosine, {"final": _FINAL}),
    "polynomial": Shape(_polynomial, {"power": Number(2.0, 0, 100, open_low=True), "final": _FINAL}),
    "cosine_restarts": Shape(_restarts, {"cycles": Number(3, 1, 10_000, whole=True), "final": _FINAL}),
    "rex": Shape(_rex, {"final": _FINAL}),
    "flat_cosine": Shape(_flat_cosine, {"flat_until": Number(0.4, 0, 0.999), "final": Number(0.02, 0, 1)}, whole=True),
}
_WARMUP = Number(0, 0, 10**9, whole=True)


@dataclass(frozen=True)
class Schedule:
    """A schedule by name; made by [`schedule`].

    Args:
        name (`str`): A key of `SHAPES`.
        warmup (`int`, defaults to 0): Updates of the warm-up.
        numbers (`tuple[tuple[str, float], ...]`): The shape's numbers.
    """

    name: str
    warmup: int = 0
    numbers: tuple[tuple[str, float], ...] = ()

    def __call__(self, update: int, total: int) -> float:
        """Return the factor of one update.

        Args:
            update (`int`): Its number, from 0.
            total (`int`): Number of updates of the run.

        Returns:
            `float`: in [0, 1]; above 0 during the warm-up.

        Raises:
            ValueError: if the run is not longer than the warm-up.
        """
        if total <= self.warmup:
            raise ValueError(
                f"The run must be longer than its warm-up of {self.warmup} updates, got {total} updates. Shorten "
                "`warmup`."
            )
        shape = SHAPES[self.name]
        start = 0 if shape.whole else self.warmup
        progress = min(1.0, max(0.0, (update - start) / (total - start)))
        return _rise(update, self.warmup) * shape.formula(progress, **dict(self.numbers))


def _rise(update: int, warmup: int) -> float:
    return min(1.0, (update + 1) / max(1, warmup))


def schedule(name: str = "constant", warmup: int = 0, **options: Any) -> Schedule:
    """Choose a schedule of the learning rate.

    During the warm-up the factor rises linearly from `1 / warmup` to 1. Then it is, with `x` from 0 to 1:

    | name | factor if `final` is 0 | options |
    |---|---|---|
    | `"constant"` | 1 | |
    | `"linear"` | `1 - x` | `final` 0 |
    | `"cosine"` | `(1 + cos(pi * x)) / 2` | `final` 0 |
    | `"polynomial"` | `(1 - x) ** power` | `power` 2, `final` 0 |
    | `"cosine_restarts"` | cosine, `cycles` times | `cycles` 3, `final` 0 |
    | `"rex"` | `(1 - x) / (1 - x / 2)` | `final` 0 |
    | `"flat_cosine"` | 1 until the share `flat_until` of all updates, then cosine | `flat_until` 0.4, `final` 0.02 |

    Args:
        name (`str`, defaults to `"constant"`): See the table.
        warmup (`int`, defaults to 0): Updates of the warm-up.
        options (`float`): Those of the table; `final` is the factor at the end, in [0, 1].

    Returns:
        `Schedule`: a function of the update's number and the number of all updates.

    Raises:
        ValueError: if a name is not known or a number is out of range.
    """
    shape = choose(SHAPES, name, "schedule")
    numbers = read_numbers(options, shape.numbers, f"the schedule {name!r}")
    return Schedule(name, int(_WARMUP.check("warmup", warmup)), tuple(numbers.items()))


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of every group to a share of its peak.

    Args:
        optimizers (`Iterable[torch.optim.Optimizer]`):
            Made by [`build_optimizer`], which notes the peak as `"peak_lr"` in every group.
        factor (`float`): What a [`Schedule`] returns.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


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
    return _rise(step, warmup) * _flat_cosine(min(1.0, step / total), flat_until, final)
