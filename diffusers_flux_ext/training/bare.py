"""Conditions without a user's inputs, which run on tensors that were encoded earlier."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

import torch

from ..condition import FluxCondition
from ..former_arguments import present_arguments


ConditionT = TypeVar("ConditionT", bound=FluxCondition)

WINDOW_FIELDS = ("start", "end", "control_stop")


def bare_condition(cls: type[ConditionT], **given: Any) -> ConditionT:
    """Make a condition from its modules and options alone.

    Its `prepare`, `contribute` and `replace_prompt` work on what another instance's `encode` returned; its own
    `encode` has no inputs to work on.

    Args:
        cls (`type`): The condition's class.
        given (`Any`): Its modules and options by field. Inputs are left out and become `None`.

    Returns:
        `FluxCondition`

    Raises:
        TypeError: if there is no such field; the nearest one is named.
        ValueError: if a field limits the condition to some steps of a loop, of which training has none.
    """
    known = {each.name: each for each in fields(cls)}
    given = present_arguments(cls, given)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(
                f"{cls.__name__} has no field {name!r}{f'; did you mean {near[0]!r}?' if near else ''}. Its fields "
                f"are {sorted(known)}."
            )
        if name in WINDOW_FIELDS and value != known[name].default:
            raise ValueError(
                f"`{name}` of {cls.__name__} is {value!r}, but training draws noise levels instead of running the "
                f"steps of a loop. Leave it out here, and set it when drawing images."
            )
    condition = cls.__new__(cls)
    for name, each in known.items():
        object.__setattr__(condition, name, given[name] if name in given else _default(each))
    return condition


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return each.default_factory() if each.default_factory is not MISSING else None


def with_encoded(condition: FluxCondition, encoded: Mapping[str, torch.Tensor]) -> FluxCondition:
    """Return a condition whose `encode` gives tensors that were encoded earlier.

    Args:
        condition (`FluxCondition`): The condition, which may be bare.
        encoded (`Mapping[str, torch.Tensor]`): What another instance encoded for one sample.

    Returns:
        `FluxCondition`: for a call with one image.
    """
    made = copy.copy(condition)

    def encode(parts: Any, canvas: Any) -> dict[str, torch.Tensor]:
        return {name: value.to(canvas.device) for name, value in encoded.items()}

    object.__setattr__(made, "encode", encode)
    return made
