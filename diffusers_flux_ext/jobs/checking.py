"""Everything about a job that can be checked without weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..condition import FluxCondition, check_conditions
from ..methods.classes import condition_class
from ..methods.loading import is_repository
from ..pipeline.call_checks import CHECKS
from ..tiny import TINY
from .building import Objects, canvas_size, lora_source, make_condition, several, words
from .caching import cache_config
from .errors import JobError, Problem
from .files import JobFiles
from .job import ConditionValues, Job
from .placeholders import Unknown, placeholder
from .sections import ModelSection
from .walking import replace_leaves


T = TypeVar("T")


def check_job(job: Job, files: JobFiles | None = None) -> None:
    """Check a job before anything is loaded: decode its inputs, and make its conditions with stand-ins for modules.

    Args:
        job (`Job`): The job.
        files ([`JobFiles`], *optional*): Its files; relative to the working directory by default.

    Raises:
        JobError: if something is wrong; all of it is named.
    """
    files = files or JobFiles()
    check = _Check(job, files)
    check.sections()
    check.conditions()
    check.call()
    several(check.problems)


class _Check:
    def __init__(self, job: Job, files: JobFiles) -> None:
        self.job, self.files = job, files
        self.problems: list[Problem] = []
        self.objects = Objects(files, canvas_size(job), functools.partial(placeholder, files))

    def sections(self) -> None:
        self._collected(_check_model, self.job.model, self.files)
        for part in ("components", "additions"):
            for name, value in getattr(self.job, part).items():
                if value is not None:
                    self._collected(self.objects.made, value, f"{part}.{name}")
        for index, lora in enumerate(self.job.loras):
            self._collected(lora_source, lora, self.files, f"loras.{index}")
        if self.job.memory.cache is not None:
            self._collected(cache_config, self.job.memory.cache)

    def conditions(self) -> None:
        made = [self._condition(each, f"conditions.{index}") for index, each in enumerate(self.job.conditions)]
        try:
            check_conditions([each for each in made if each is not None])
        except ValueError as error:
            self.problems.append(Problem("conditions", words(error)))

    def call(self) -> None:
        arguments = replace_leaves(self.job.call, "call", self._made)
        for name, value in arguments.items():
            if name in CHECKS and value is not None and value is not Unknown:
                try:
                    CHECKS[name](f"`{name}`", value)
                except (TypeError, ValueError) as error:
                    self.problems.append(Problem(f"call.{name}", words(error).removeprefix(f"`{name}` ")))
        self._seeds(arguments.get("prompt"))

    def _seeds(self, prompt: Any) -> None:
        seeds = self.job.call.seed
        if isinstance(seeds, tuple) and isinstance(prompt, (str, list)):
            count = (1 if isinstance(prompt, str) else len(prompt)) * self.job.call.num_images_per_prompt
            if len(seeds) != count:
                self.problems.append(
                    Problem("call.seed", f"has {len(seeds)} seeds for {count} images; give one, or one per image")
                )

    def _condition(self, values: ConditionValues, place: str) -> FluxCondition | None:
        before = len(self.problems)
        arguments = replace_leaves(values, place, self._made)
        del arguments["type"]
        if len(self.problems) > before or any(value is Unknown for value in arguments.values()):
            return None
        return self._collected(make_condition, condition_class(values.type), arguments, place)

    def _made(self, value: Any, place: str) -> Any:
        found = self._collected(self.objects.made, value, place)
        return Unknown if found is None else found

    def _collected(self, check: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return check(*arguments)
        except JobError as error:
            self.problems += error.problems
        except Unknown:
            pass
        return None


def _check_model(model: ModelSection, files: JobFiles) -> None:
    path = files.source(model.path)
    if model.path == TINY:
        return
    if not os.path.exists(path):
        if not is_repository(path):
            raise JobError.of(
                "model.path", f"there is no file or folder `{model.path}`, and it is not a repository's name"
            )
    elif os.path.isdir(path) and not (Path(path) / "model_index.json").is_file():
        raise JobError.of("model.path", f"`{model.path}` is not a pipeline's folder: it has no `model_index.json`")
    if model.base is not None and not os.path.exists(files.source(model.base)) and not is_repository(model.base):
        raise JobError.of("model.base", f"there is no folder `{model.base}`, and it is not a repository's name")
