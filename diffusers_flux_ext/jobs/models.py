"""Loaded pipelines and modules, kept from one job to the next."""

from __future__ import annotations

import functools
import gc
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig

from ..checkpoints.model_configs import building
from ..checkpoints.pipeline_folders import check_pipeline_folder
from ..methods.classes import pipeline_class
from ..pipeline.conditioned import FluxConditionedPipeline
from ..tiny import named_model
from .adapters import Adapters
from .arguments import component_classes
from .building import Objects, canvas_size, load_from, words
from .encodings import Encodings
from .errors import JobError
from .files import JobFiles
from .job import Job
from .placing import Placement
from .sections import ModelSection
from .values import ModuleValue


MODULES_PER_MODEL = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class LoadedModel:
    """A model, and what is done to it: its pipelines share their modules.

    Args:
        pipelines (`dict`): Pipelines by class and by what they have beside the model.
        adapters (`Adapters`): Its LoRAs.
        encodings (`Encodings`): Encoded prompts.
        placement (`Placement`): Where its weights are.
    """

    pipelines: dict[Any, Any] = field(default_factory=dict)
    adapters: Adapters = field(default_factory=Adapters)
    encodings: Encodings = field(default_factory=Encodings)
    placement: Placement = field(default_factory=Placement)


class Models:
    """Loads models and modules when jobs need them, and keeps those that were used last.

    Args:
        dtype (`torch.dtype`): Data type of models whose job names none.
        keep (`int`): How many models are kept.
    """

    def __init__(self, dtype: torch.dtype, keep: int) -> None:
        self.dtype, self.keep = dtype, keep
        self._models: OrderedDict[Any, LoadedModel] = OrderedDict()
        self._modules: OrderedDict[Any, Any] = OrderedDict()

    def dtype_of(self, job: Job) -> torch.dtype:
        """Return the data type that a job's model has."""
        return DTYPES.get(job.model.dtype or "", self.dtype)

    def module(self, job: Job, files: JobFiles, value: ModuleValue, place: str) -> Any:
        """Return a module of a job, loaded now or before.

        Args:
            job (`Job`): The job.
            files ([`JobFiles`]): Its files.
            value (`ModuleValue`): The module.
            place (`str`): Its field, for errors.

        Returns:
            `Any`

        Raises:
            JobError: if it cannot be loaded.
        """
        key = self._module_key(job, files, value)
        if key not in self._modules:
            self._modules[key] = load_from(files, value, place, dtype=self.dtype_of(job))
        self._modules.move_to_end(key)
        while len(self._modules) > MODULES_PER_MODEL * self.keep:
            self._modules.popitem(last=False)
        return self._modules[key]

    def _module_key(self, job: Job, files: JobFiles, value: ModuleValue) -> Any:
        named = (value.subfolder, value.weight_name, value.revision)
        return (value.classes, _identity(files.source(value.path)), named, self.dtype_of(job))

    def pipeline(self, job: Job, files: JobFiles) -> tuple[FluxConditionedPipeline, LoadedModel]:
        """Return the pipeline of a job without its LoRAs, loaded now or before.

        Args:
            job (`Job`): The job.
            files ([`JobFiles`]): Its files.

        Returns:
            `tuple[FluxConditionedPipeline, LoadedModel]`: the pipeline, and the model that it belongs to.

        Raises:
            JobError: if it cannot be loaded.
        """
        cls = pipeline_class(job.pipeline)
        own = component_classes(FluxConditionedPipeline).keys()
        parts = {
            name: None if value is None else self._module_key(job, files, value)
            for name, value in sorted(job.components.items())
        }
        section = job.model
        base = None if section.base is None else files.source(section.base)
        source = (_identity(named_model(files.source(section.path))), section.revision, base, self.dtype_of(job))
        key = (source, tuple(item for item in parts.items() if item[0] in own))
        if key not in self._models:
            self._forget(self.keep - 1)
        model = self._models.setdefault(key, LoadedModel())
        self._models.move_to_end(key)
        variant = (cls, tuple(item for item in parts.items() if item[0] not in own))
        if variant not in model.pipelines:
            try:
                model.pipelines[variant] = self._made(cls, model, job, files)
            except BaseException:
                if not model.pipelines:
                    del self._models[key]
                raise
        return model.pipelines[variant], model

    def _made(self, cls: Any, model: LoadedModel, job: Job, files: JobFiles) -> Any:
        given = Objects(files, canvas_size(job), functools.partial(self.module, job, files)).components(job)
        other = next(iter(model.pipelines.values()), None)
        further = component_classes(cls).keys() - component_classes(FluxConditionedPipeline).keys()
        if other is not None and further <= given.keys() | other.components.keys():
            pipe = cls.from_pipe(other, **{name: module for name, module in given.items() if name in further})
        else:
            pipe = _load(cls, job.model, files, self.dtype_of(job), given)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _forget(self, keep: int) -> None:
        dropped = False
        while len(self._models) > max(0, keep):
            _, model = self._models.popitem(last=False)
            model.placement.leave()
            dropped = True
        if dropped:
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()


def _load(cls: Any, section: ModelSection, files: JobFiles, dtype: torch.dtype, given: dict[str, Any]) -> Any:
    path = named_model(files.source(section.path))
    options: dict[str, Any] = {"dtype": dtype, **given}
    try:
        with building(path, passing=(OSError, ValueError, TypeError), what="a FLUX.1 pipeline"):
            if os.path.isfile(path):
                if path.lower().endswith(".gguf"):
                    options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
                return cls.from_single_file(
                    path, config=None if section.base is None else files.source(section.base), **options
                )
            if os.path.isdir(path):
                # A broken config may ask for any memory.
                check_pipeline_folder(path)
            revision = {} if section.revision is None else {"revision": section.revision}
            return cls.from_pretrained(path, **revision, **options)
    except (OSError, ValueError, TypeError) as error:
        raise JobError.of("model.path", f"cannot be loaded: {words(error)}") from error


def _identity(path: str) -> tuple[Any, ...]:
    """Return what changes when a local file or folder does."""
    if not os.path.exists(path):
        return (path,)
    found = Path(path)
    times = [each.stat() for each in (sorted(found.rglob("*")) if found.is_dir() else [found]) if each.is_file()]
    return (str(found.resolve()), tuple((each.st_size, each.st_mtime_ns) for each in times))
