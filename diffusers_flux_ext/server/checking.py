"""Bounds of a job that only a server has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import RequestError
from .limits import Limits


def check_size(job: Mapping[str, Any], limits: Limits) -> None:
    """Check how long a job is, apart from its uploads.

    Raises:
        RequestError: if it is too long.
    """
    size = len(json.dumps(job).encode())
    if size > limits.job_bytes:
        message = f"The job has {size:,} bytes of JSON without its images; at most {limits.job_bytes:,} are accepted."
        raise RequestError(413, message)


def check_bounds(job: Mapping[str, Any], limits: Limits) -> None:
    """Check how much work a job is. Types are checked later, and all that is not a number or list passes here.

    Args:
        job (`Mapping[str, Any]`): The job.
        limits (`Limits`): The bounds.

    Raises:
        RequestError: with every number that is too large.
    """
    call = job["call"] if isinstance(job.get("call"), Mapping) else {}
    values: list[tuple[str, Any, int]] = [("call.num_inference_steps", call.get("num_inference_steps"), limits.steps)]
    values += [(f"call.{side}", call.get(side), limits.side) for side in ("width", "height")]
    values += [(name, _length(job.get(name)), limits.conditions) for name in ("conditions", "loras")]
    images = (_length(call.get("prompt")) or 1) * (_whole(call.get("num_images_per_prompt")) or 1)
    values += [("call.num_images_per_prompt", images, limits.images)]
    problems = [
        (field, f"got {value}; this server accepts at most {most}")
        for field, value, most in values
        if (_whole(value) or 0) > most
    ]
    problems += _long_lists(job.get("conditions"), "conditions", limits.entries)
    problems += _memory(job.get("memory"))
    if problems:
        raise RequestError(422, "; ".join(f"{field}: {message}" for field, message in problems), problems)


def _memory(given: Any) -> list[tuple[str, str]]:
    """Refuse what the server decides for all of its jobs."""
    if not isinstance(given, Mapping):
        return []
    chosen = [("vram_gib", given.get("vram_gib")), ("offload", given.get("offload"))]
    return [
        (f"memory.{name}", f"got {value!r}; the server decides about its memory, leave this out")
        for name, value in chosen
        if value not in (None, "none")
    ]


def _long_lists(value: Any, field: str, most: int) -> list[tuple[str, str]]:
    """Find lists of texts and of inputs that are too long; lists of numbers, points and strokes may be long."""
    if isinstance(value, Mapping):
        return [found for name, each in value.items() for found in _long_lists(each, f"{field}.{name}", most)]
    if not isinstance(value, list) or field.endswith((".points", ".polygon", ".strokes")):
        return []
    if len(value) > most:
        return [(field, f"has {len(value)} entries; this server accepts at most {most}")]
    return [found for index, each in enumerate(value) for found in _long_lists(each, f"{field}.{index}", most)]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None
