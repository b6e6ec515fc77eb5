"""Steps of the optimizer inside of the backward pass, so that gradients of one parameter at a time take memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .rounding import RoundedOptimizer
from .stepping import step_alone, steps_by_parameter


class FusedBackward:
    """Steps each parameter as soon as its gradient is complete, and frees the gradient.

    Set the learning rates before the backward pass, and call [`step`] after it instead of the optimizers' own.

    Args:
        optimizers (`Sequence[torch.optim.Optimizer]`): Those of [`build_optimizer`].
        gradient_accumulation_steps (`int`, defaults to 1): Must be 1: a gradient does not outlive its backward pass.
        max_grad_norm (`float`, *optional*): Must be None: no parameter can wait for the norm of all gradients.

    Raises:
        ValueError: if gradients are to be accumulated or clipped, or an optimizer steps all parameters at once.
        RuntimeError: if there are several processes, which exchange gradients only after they are complete.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        gradient_accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
    ) -> None:
        _check(optimizers, gradient_accumulation_steps, max_grad_norm)
        self.optimizers = list(optimizers)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(_hook(optimizer, number))
            for optimizer in self.optimizers
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        ]

    def step(self) -> None:
        """Count the update; the parameters are stepped already."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, RoundedOptimizer):
                optimizer.advance()

    def close(self) -> None:
        """Leave the steps to the optimizers again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _hook(optimizer: torch.optim.Optimizer, number: int) -> Callable[[torch.nn.Parameter], None]:
    def step(parameter: torch.nn.Parameter) -> None:
        if isinstance(optimizer, RoundedOptimizer):
            optimizer.step_parameter(number, parameter)
        else:
            step_alone(optimizer, optimizer.param_groups[number], parameter)
        parameter.grad = None

    return step


def _check(
    optimizers: Sequence[torch.optim.Optimizer], gradient_accumulation_steps: int, max_grad_norm: float | None
) -> None:
    if gradient_accumulation_steps != 1:
        raise ValueError(
            "A fused backward pass frees gradients at once, so they cannot be accumulated: set "
            f"`gradient_accumulation_steps` to 1, got {gradient_accumulation_steps}."
        )
    if max_grad_norm is not None:
        raise ValueError(
            "A fused backward pass never has all gradients, so they cannot be clipped by their common norm: set "
            f"`max_grad_norm` to None, got {max_grad_norm}."
        )
    for optimizer in optimizers:
        if not steps_by_parameter(optimizer):
            name = type(getattr(optimizer, "inner", optimizer)).__name__
            raise ValueError(
                f"A fused backward pass steps parameters one by one, which is not known to be right for {name}. "
                "Choose AdamW, its 8-bit form, Adafactor, Lion or Muon."
            )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        if count > 1:
            raise RuntimeError(f"A fused backward pass works in one process, got {count}. Turn it off.")
