"""What conditions take and what calls of pipelines take, as a job spells it."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from .descriptions import described_arguments
from .kinds import job_type


SEED = "seed"
NOT_DATA: Mapping[str, str] = {
    "conditions": "they are the job's own `conditions`",
    "generator": "it is `seed`",
    "output_type": "a job gives images",
    "return_dict": "a job gives images",
    "callback_on_step_end": "it is code; see `on_step` of `JobRunner.run`",
    "callback_on_step_end_tensor_inputs": "it belongs to `callback_on_step_end`",
    **dict.fromkeys(
        (
            "ip_adapter_image",
            "ip_adapter_image_embeds",
            "negative_ip_adapter_image",
            "negative_ip_adapter_image_embeds",
        ),
        "it belongs to an adapter of diffusers; a job has the condition `IPAdapterImages`",
    ),
}
"""Arguments of calls that a job does not have, and why."""


@dataclass(frozen=True)
class Argument:
    """An argument of a condition or of a call.

    Args:
        name (`str`): Its name.
        kind (`Any`): Its type in a job; `NotImplemented` if no value of it can be expressed.
        default (`Any`): Its default; `dataclasses.MISSING` if it is required.
        about (`str`): Its help text.
    """

    name: str
    kind: Any
    default: Any
    about: str

    @property
    def is_expressible(self) -> bool:
        """Whether a job can express values of it."""
        return self.kind is not NotImplemented


@functools.cache
def condition_arguments(condition: Any) -> tuple[Argument, ...]:
    """Return the fields of a condition.

    Args:
        condition (`type`): Its class.

    Returns:
        `tuple[Argument, ...]`
    """
    about, found = described_arguments(condition), []
    for each in fields(condition):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        kind = job_type(_resolved(_owner(condition, each.name), each.type))
        found.append(Argument(each.name, kind, default, about.get(each.name, "")))
    return tuple(found)


@functools.cache
def call_arguments(pipeline: Any, conditions: tuple[Any, ...] = ()) -> tuple[Argument, ...]:
    """Return the arguments of a pipeline's call, except for those of [`NOT_DATA`].

    Args:
        pipeline (`type`): Its class.
        conditions (`tuple[type, ...]`): Conditions of the same method, whose help texts stand in for missing ones.

    Returns:
        `tuple[Argument, ...]`
    """
    about: dict[str, str] = {}
    for owner in (*reversed([base.__call__ for base in pipeline.__mro__ if "__call__" in vars(base)]), *conditions):
        for name, text in described_arguments(owner).items():
            if name not in about or owner not in conditions or about[name].startswith("See "):
                about[name] = text
    found = []
    for part in inspect.signature(pipeline.__call__).parameters.values():
        if part.name == "self" or part.name in NOT_DATA or part.kind in (part.VAR_POSITIONAL, part.VAR_KEYWORD):
            continue
        default = MISSING if part.default is part.empty else part.default
        kind = job_type(_resolved(pipeline, part.annotation))
        found.append(Argument(part.name, kind, default, about.get(part.name, "")))
    return tuple(found)


@functools.cache
def component_classes(pipeline: Any) -> Mapping[str, tuple[type, ...]]:
    """Return the classes that a pipeline's components may be of, by name.

    Args:
        pipeline (`type`): Its class.

    Returns:
        `Mapping[str, tuple[type, ...]]`
    """
    found = {}
    for part in inspect.signature(pipeline).parameters.values():
        kind = job_type(_resolved(pipeline, part.annotation))
        options = kind if typing.get_args(kind) == () else typing.get_args(kind)[0]
        if classes := getattr(options, "classes", ()):
            found[part.name] = classes
    return found


def component_abouts(pipeline: type) -> dict[str, str]:
    """Return the help texts of a pipeline's components, by name.

    Args:
        pipeline (`type`): Its class.

    Returns:
        `dict[str, str]`
    """
    about: dict[str, str] = {}
    for base in reversed(pipeline.__mro__):
        texts = described_arguments(base) if "__doc__" in vars(base) else {}
        about |= {name: text for name, text in texts.items() if not text.startswith("As for ")}
    return about


def _owner(condition: type, name: str) -> type:
    """Return the class that annotates a field."""
    return next(base for base in condition.__mro__ if name in vars(base).get("__annotations__", {}))


def _resolved(owner: type, annotation: Any) -> Any:
    """Evaluate an annotation that is a text in the module of the class that it comes from, or of one of its bases.

    What cannot be evaluated, such as what type checkers alone import, cannot be expressed.
    """
    if not isinstance(annotation, str):
        return annotation
    for base in owner.__mro__:
        names = vars(sys.modules[base.__module__])
        holder = type("Holder", (), {"__annotations__": {"value": annotation}})
        try:
            return typing.get_type_hints(holder, globalns=names, localns=dict(names))["value"]
        except NameError:
            continue
    return NotImplemented
