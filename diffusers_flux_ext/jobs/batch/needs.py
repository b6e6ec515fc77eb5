"""What jobs need, from sizes alone."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...methods.catalog import flux_models
from ...offload.budget.plan import VRAMBudgetError
from ...offload.budget.planner import plan_vram
from ...tiny import named_model
from ..building import Objects, canvas_size
from ..checking import check_job
from ..errors import JobError
from ..placeholders import Unknown, placeholder
from .listed import Listed
from .results import ResultFolder
from .storage import located


# A plan with everything on the card at once, which tells what is needed without any streaming.
UNLIMITED_GIB = 2.0**20
# Repositories whose sizes are known without their files, and what differs in the transformer's config.
RELEASED: dict[str, dict[str, Any]] = {
    "black-forest-labs/FLUX.1-dev": {},
    "black-forest-labs/FLUX.1-Kontext-dev": {},
    "black-forest-labs/FLUX.1-schnell": {"guidance_embeds": False},
}


def needs(
    listed: Sequence[Listed], folder: str | os.PathLike[str] | None = None, vram_gib: float | None = None
) -> Iterator[dict[str, Any]]:
    """Say of each entry of a list what it needs.

    Args:
        listed (`Sequence[Listed]`): The list.
        folder (`str` or `os.PathLike`, *optional*): Where results may be already, a folder or a URL; it is only read.
        vram_gib (`float`, *optional*): The budget of jobs that name none.

    Yields:
        `dict[str, Any]`:
            `place`, `name`, `status` (`"done"`, `"failed"`, `"open"` or `"wrong"`) and, of an open job, `width`,
            `height`, `images`, `steps` and, where all sizes are known, `weights_gib` and `peak_gib`; otherwise
            `unknown` says what is not known. `message` says what is wrong.
    """
    results = ResultFolder(folder) if folder is not None and _is_there(folder) else None
    plans: dict[str, dict[str, Any]] = {}
    for each in listed:
        yield {"place": each.place, "name": each.name, **_needs(each, results, vram_gib, plans)}


def _is_there(folder: str | os.PathLike[str]) -> bool:
    found = located(folder)
    return found.is_dir() if isinstance(found, Path) else True


def _needs(
    each: Listed, results: ResultFolder | None, vram_gib: float | None, plans: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    if each.work is None:
        return {"status": "wrong", "message": str(each.error)}
    work = each.work
    if results is not None and results.record(each.name, work.digest) is not None:
        return {"status": "done"}
    failure = None if results is None else results.error(each.name)
    if failure is not None:
        return {"status": "failed", "message": failure.get("message")}
    try:
        check_job(work.job, work.files)
        key = _shape_of(work.job)
        if key not in plans:
            plans[key] = _planned(work.job, work.files, vram_gib)
        return {"status": "open", **_described(work.job), **plans[key]}
    except (JobError, VRAMBudgetError) as error:
        return {"status": "wrong", "message": str(error)}


def _shape_of(job: Any) -> str:
    """Return what plans depend on: everything but seeds and what is said in the prompt."""
    content = job.to_dict()
    for name in ("seed", "prompt", "prompt_2", "negative_prompt", "negative_prompt_2"):
        content["call"].pop(name, None)
    return json.dumps([content, _batch(job)], sort_keys=True)


def _described(job: Any) -> dict[str, Any]:
    width, height = canvas_size(job)
    return {"width": width, "height": height, "images": _batch(job), "steps": job.call.num_inference_steps}


def _batch(job: Any) -> int:
    prompt = job.call.prompt
    return (len(prompt) if isinstance(prompt, tuple) else 1) * int(job.call.num_images_per_prompt)


def _planned(job: Any, files: Any, vram_gib: float | None) -> dict[str, Any]:
    try:
        models = _models(named_model(files.source(job.model.path)))
        objects = Objects(files, canvas_size(job), functools.partial(placeholder, files))
        conditions = [objects.condition(each, f"conditions.{index}") for index, each in enumerate(job.conditions)]
    except Unknown:
        return {"unknown": "the sizes of a module, which is not a local folder"}
    except (OSError, ValueError):
        return {"unknown": f"the sizes of {job.model.path}, which is not here"}
    width, height = canvas_size(job)
    plan = plan_vram(
        models,
        job.memory.vram_gib or vram_gib or UNLIMITED_GIB,
        height=height,
        width=width,
        batch=_batch(job),
        conditions=conditions,
        max_sequence_length=job.call.max_sequence_length,
    )
    weights = sum(component.total for component in plan.components)
    return {"weights_gib": round(weights / 2**30, 3), "peak_gib": round(plan.peak_gib, 3)}


@functools.lru_cache(maxsize=8)
def _models(path: str) -> dict[str, Any]:
    if os.path.isfile(path):
        raise OSError(f"`{path}` is a single file.")
    try:
        return flux_models(path)
    except OSError:
        if path not in RELEASED:
            raise
        return flux_models(**RELEASED[path])
