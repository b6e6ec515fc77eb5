"""Steps of one parameter at a time, for optimizers in which no parameter's step depends on another parameter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


# Names of classes, among torch, bitsandbytes, lion-pytorch and transformers, that keep all state by parameter.
_BY_PARAMETER = frozenset(
    {
        "Adafactor", "Adagrad", "Adam", "Adam8bit", "AdamW", "AdamW8bit", "Lion", "Lion8bit", "Muon", "NAdam",
        "PagedAdamW", "PagedAdamW8bit", "PagedLion8bit", "RAdam", "RMSprop", "SGD",
    }
)  # fmt: skip


def steps_by_parameter(optimizer: torch.optim.Optimizer) -> bool:
    """Whether parameters may be stepped one by one, with the same result.

    Args:
        optimizer (`torch.optim.Optimizer`): Prodigy and schedule-free optimizers, for example, keep state that all
            parameters share, so that each call of their `step` must see all of them.

    Returns:
        `bool`: False for classes that are not known.
    """
    return type(getattr(optimizer, "inner", optimizer)).__name__ in _BY_PARAMETER


def step_alone(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.nn.Parameter) -> None:
    """Step one parameter of an optimizer for which [`steps_by_parameter`] holds.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimizer.
        group (`dict[str, Any]`): The parameter's group.
        parameter (`torch.nn.Parameter`): It has a gradient.
    """
    with _only(optimizer, {**group, "params": [parameter]}):
        optimizer.step()


@contextmanager
def _only(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Iterator[None]:
    groups = optimizer.param_groups
    optimizer.param_groups = [group]
    try:
        yield
    finally:
        optimizer.param_groups = groups
