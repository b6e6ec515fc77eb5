"""Reading and writing jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..checkpoints.writing import written_at_once
from ..methods.classes import pipeline_methods
from ..validation import entries, nearest
from .errors import JobError, Problem
from .job import DEFAULT_PIPELINE, VERSION, Job, job_model
from .metadata import is_image, job_in_image


def read_job(source: str | os.PathLike[str] | Mapping[str, Any]) -> Job:
    """Read and check a job.

    Args:
        source (`str`, `os.PathLike` or `Mapping`):
            A file of JSON or YAML; an image that [`save_result_image`] wrote, whose metadata hold the job; a text of
            JSON or YAML of several lines or in braces; or the content.

    Returns:
        `Job`

    Raises:
        JobError: if entries are unknown, missing or wrong. All of them are named.
        OSError: if the file cannot be read.
    """
    content = _content(source)
    if content.get("version", VERSION) != VERSION:
        raise JobError.of("version", f"is {content['version']!r}; this version of the package reads {VERSION}")
    pipeline, problems = content.get("pipeline", DEFAULT_PIPELINE), []
    if not isinstance(pipeline, str) or pipeline not in pipeline_methods():
        problems.append(
            Problem("pipeline", f"is {pipeline!r}, which is not known{nearest(pipeline, pipeline_methods())}")
        )
        # What depends on the pipeline cannot be checked.
        content = {name: value for name, value in content.items() if name not in ("pipeline", "components", "call")}
        pipeline = DEFAULT_PIPELINE
    model = job_model(pipeline)
    try:
        job = model.model_validate(content)
    except ValidationError as error:
        raise JobError([*problems, *(Problem(*entry) for entry in entries(error, model, content))]) from None
    if problems:
        raise JobError(problems)
    return job


def write_job(job: Job, path: str | os.PathLike[str]) -> None:
    """Write a job as YAML, or as JSON if the path ends in `.json`.

    Args:
        job (`Job`): The job.
        path (`str` or `os.PathLike`): The file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    content = job.to_dict()
    if Path(path).suffix.lower() == ".json":
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    with written_at_once(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _content(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return _parsed(source, "the text")
    path = Path(source)
    if is_image(path):
        return job_in_image(path)
    try:
        return _parsed(path.read_text(encoding="utf-8"), f"`{path}`")
    except UnicodeDecodeError:
        raise JobError.of("", f"`{path}` is neither a text nor an image; expected a job in JSON or YAML") from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        # JSON first: YAML reads some of its numbers as texts.
        content = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise JobError.of("", f"{name} is not JSON or YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(entry, str) for entry in content):
        raise JobError.of("", f"{name} holds {type(content).__name__}; expected entries such as `model:`")
    return content
