"""The order in which jobs are drawn: those that share models, LoRAs, modules and texts one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar


T = TypeVar("T")
# What is costly to change comes first.
MODEL = ("model", "pipeline", "components", "additions", "memory")
TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2", "max_sequence_length")
SIZES = ("width", "height", "num_inference_steps", "num_images_per_prompt")


def grouped(items: Sequence[T], job_of: Callable[[T], Mapping[str, Any]]) -> list[list[T]]:
    """Group jobs by model, and order each group by LoRAs, modules, size and texts.

    Groups, and what differs within them, stand in the order in which they first occur.

    Args:
        items (`Sequence`): The jobs, or what holds them.
        job_of (`Callable`): Maps an item to the entries of its job.

    Returns:
        `list[list]`: the groups; all jobs of one need the same models.
    """
    keys = [_levels(job_of(item)) for item in items]
    first: dict[tuple[str, ...], int] = {}
    for index, levels in enumerate(keys):
        for depth in range(1, len(levels) + 1):
            first.setdefault(levels[:depth], index)
    order = sorted(
        range(len(items)), key=lambda index: [first[keys[index][: depth + 1]] for depth in range(len(keys[index]))]
    )
    groups: dict[str, list[T]] = {}
    for index in order:
        groups.setdefault(keys[index][0], []).append(items[index])
    return list(groups.values())


def _levels(job: Mapping[str, Any]) -> tuple[str, ...]:
    call = job.get("call") or {}
    values = (
        [job.get(name) for name in MODEL],
        job.get("loras"),
        _modules(job.get("conditions")),
        [call.get(name) for name in SIZES],
        [call.get(name) for name in TEXTS],
    )
    return tuple(json.dumps(value, sort_keys=True, default=str) for value in values)


def _modules(value: Any) -> list[Any]:
    """Return everything that is loaded from a path, however deep it stands."""
    if isinstance(value, Mapping):
        own = [value] if "path" in value else []
        return own + [found for each in value.values() for found in _modules(each)]
    if isinstance(value, (list, tuple)):
        return [found for each in value for found in _modules(each)]
    return []
