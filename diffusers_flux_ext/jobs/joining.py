"""Jobs that differ in prompt and seed only, joined into one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .job import DEFAULT_PIPELINE, Job
from .reading import read_job


# What each job of a call may have for itself.
OWN = ("prompt", "seed")


def can_join(job: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two jobs can be drawn in one call, as two images of it.

    They differ in prompt and seed only, and draw one image each. Jobs with a cache are drawn alone, since a cache
    decides for a whole call; so are jobs whose conditions draw noise of their own.

    Args:
        job (`Mapping[str, Any]`): The entries of one job.
        other (`Mapping[str, Any]`): Those of the other one.

    Returns:
        `bool`
    """
    return _is_single(job) and _is_single(other) and _shared(job) == _shared(other)


def joined(jobs: Sequence[Mapping[str, Any]]) -> Job:
    """Return one job that draws several, an image for each, in their order.

    Args:
        jobs (`Sequence[Mapping[str, Any]]`): The entries of jobs, any two of which [`can_join`].

    Returns:
        `Job`
    """
    first = jobs[0]
    own = {name: [_call(job).get(name, 0) for job in jobs] for name in OWN}
    return read_job({**first, "call": {**_call(first), **own}})


def _is_single(job: Mapping[str, Any]) -> bool:
    call = _call(job)
    return (
        isinstance(call.get("prompt"), str)
        and isinstance(call.get("seed", 0), int)
        and call.get("num_images_per_prompt", 1) == 1
        and not any(call.get(name) for name in ("prompt_2", "prompt_embeds", "latents"))
        and not (job.get("memory") or {}).get("cache")
        and not any("generator" in condition for condition in job.get("conditions") or ())
        and job.get("pipeline", DEFAULT_PIPELINE) == DEFAULT_PIPELINE
    )


def _shared(job: Mapping[str, Any]) -> dict[str, Any]:
    call = {name: value for name, value in _call(job).items() if name not in OWN}
    return {**job, "call": call, "output": None}


def _call(job: Mapping[str, Any]) -> Mapping[str, Any]:
    call: Mapping[str, Any] = job.get("call") or {}
    return call
