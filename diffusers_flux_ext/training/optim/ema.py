"""Exponential moving average of weights, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from ...checkpoints.messages import list_keys


class ExponentialMovingAverage:
    """A running average of some parameters, faster in the first steps.

    It is kept in float32 whatever the parameters' data type: in bfloat16 the small changes of an average are rounded
    away, so that it stands still.

    Args:
        parameters (`Iterable[torch.nn.Parameter]` or `Mapping[str, torch.nn.Parameter]`):
            What to average; names make the state's names.
        decay (`float`, defaults to 0.998): How much of the average is kept at each step, in [0, 1).
        every (`int`, defaults to 1):
            The average is updated at every so many steps, with a decay of `decay ** every`: it reaches as far back.
        device (`str` or `torch.device`, *optional*): Where the averages are; beside the parameters by default.

    Raises:
        ValueError: if `decay` or `every` is out of range.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter] | Mapping[str, torch.nn.Parameter],
        decay: float = 0.998,
        every: int = 1,
        device: str | torch.device | None = None,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}.")
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}.")
        if not isinstance(parameters, Mapping):
            parameters = {str(number): parameter for number, parameter in enumerate(parameters)}
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.decay = decay
        self.every = every
        self.averages = [
            parameter.detach().to(device=device or parameter.device, dtype=torch.float32, copy=True)
            for parameter in self.parameters
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the parameters after step number `step`, from 0, if it is their turn."""
        if (step + 1) % self.every:
            return
        decay = min(self.decay, (1 + step) / (10 + step)) ** self.every
        values = [
            parameter.detach().to(average.device, torch.float32)
            for parameter, average in zip(self.parameters, self.averages)
        ]
        torch._foreach_lerp_(self.averages, values, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the parameters by their averages inside this context."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(trained)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by the parameters' names, for a checkpoint; they are not copied."""
        return dict(zip(self.names, self.averages))

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the averages of a checkpoint.

        Args:
            state (`Mapping[str, torch.Tensor]`): What `state` returned.

        Raises:
            ValueError: if names or shapes are not those of the parameters; nothing is changed then.
        """
        own = self.state()
        differ = own.keys() ^ state.keys()
        differ |= {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
        if differ:
            raise ValueError(f"These averages do not belong to the parameters: {list_keys(differ)} differ.")
        for name, average in own.items():
            value, target = state[name], average
            if isinstance(target, DTensor):
                value = distribute_tensor(value.to(target), target.device_mesh, target.placements)
            target.copy_(value)

    @torch.no_grad()
    def _assign(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.copy_(value)
