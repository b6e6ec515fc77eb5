"""The classes that records export, by name."""

from __future__ import annotations

from ..condition import FluxCondition
from ..pipeline.conditioned import FluxConditionedPipeline
from . import METHODS, find
from .method import Method


def condition_methods() -> dict[str, Method]:
    """Return the methods of all registered conditions, by the names of the conditions."""
    return {name: method for method in METHODS.values() for name in method.exports.get("condition", ())}


def condition_class(name: str) -> type[FluxCondition]:
    """Return the class of a registered condition.

    Args:
        name (`str`): One of [`condition_methods`].

    Returns:
        `type`
    """
    found: type[FluxCondition] = find(condition_methods()[name], name)  # type: ignore[assignment]
    return found


def pipeline_methods() -> dict[str, Method | None]:
    """Return the methods of all registered pipelines by name; `None` for the composable pipeline."""
    named = {name: method for method in METHODS.values() for name in method.pipelines}
    return {FluxConditionedPipeline.__name__: None, **named}


def pipeline_class(name: str) -> type[FluxConditionedPipeline]:
    """Return the class of a registered pipeline.

    Args:
        name (`str`): One of [`pipeline_methods`].

    Returns:
        `type`
    """
    method = pipeline_methods()[name]
    if method is None:
        return FluxConditionedPipeline
    found: type[FluxConditionedPipeline] = find(method, name)  # type: ignore[assignment]
    return found
