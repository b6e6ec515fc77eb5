"""Exponential moving average of weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


class ExponentialMovingAverage:
    """A running average of some parameters, faster in the first steps.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): What to average.
        decay (`float`, defaults to 0.998): How much of the average is kept at each step, in [0, 1).

    Raises:
        ValueError: if `decay` is out of range.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}.")
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the parameters of step number `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the parameters by their averages inside this context."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(trained)

    @torch.no_grad()
    def _assign(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)
