"""Walking through the values of a job, or of Python objects beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from .values import Leaf


def replace_leaves(value: Any, place: str, replace: Callable[[Leaf, str], Any]) -> Any:
    """Replace what stands for objects in a value.

    Args:
        value (`Any`): A value of a job.
        place (`str`): Its field.
        replace (`Callable[[Leaf, str], Any]`): Gets each such value and its field.

    Returns:
        `Any`: lists and mappings in place of tuples and models, as Python code would give them.
    """
    if isinstance(value, Leaf):
        return replace(value, place)
    if isinstance(value, (list, tuple)):
        return [replace_leaves(each, f"{place}.{index}", replace) for index, each in enumerate(value)]
    if isinstance(value, Mapping):
        return {name: replace_leaves(each, f"{place}.{name}", replace) for name, each in value.items()}
    if isinstance(value, BaseModel):
        return {
            name: replace_leaves(getattr(value, name), f"{place}.{name}".removeprefix("."), replace)
            for name in type(value).model_fields
            if name in value.model_fields_set
        }
    return value
