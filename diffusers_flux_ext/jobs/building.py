"""From a job to the objects of a call."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..condition import FluxCondition
from ..inputs.boxes import box_in_pixels
from ..methods.classes import condition_class, pipeline_class
from ..methods.loading import is_repository, load_module
from ..tiny import TINY, named_lora
from .arguments import SEED, component_classes
from .errors import JobError, Problem
from .files import JobFiles
from .job import ConditionValues, Job
from .kinds import module_value
from .origins import Origins
from .values import ImageValue, Leaf, LoRAValue, ModuleValue, RegionValue, SeedValue, TensorValue
from .walking import replace_leaves


TOKEN, DEFAULT_SIDE = 16, 1024
PROCESSOR = "_processor"

Load = Callable[[ModuleValue, str], Any]
"""Loads a module; gets its value and its field."""


@dataclass(frozen=True, eq=False)
class BuiltCall:
    """The objects of a call.

    Args:
        pipeline (`type`): The pipeline's class.
        components (`dict[str, Any]`): Modules of the pipeline, by component.
        conditions (`list[FluxCondition]`): The conditions.
        call (`dict[str, Any]`): The other arguments of the call.
        origins (`Origins`): What the objects are in the job, for [`job_from_call`].
    """

    pipeline: type
    components: dict[str, Any]
    conditions: list[FluxCondition]
    call: dict[str, Any]
    origins: Origins = field(default_factory=Origins)


def build_call(job: Job, files: JobFiles | None = None, *, load: Load | None = None) -> BuiltCall:
    """Make the objects of a call. The model and its LoRAs are not loaded.

    Args:
        job (`Job`): The job.
        files ([`JobFiles`], *optional*): Its files; relative to the working directory by default.
        load (`Callable[[ModuleValue, str], Any]`, *optional*):
            Loads a module, of which it gets the value and the field; [`load_module`] in float32 by default.

    Returns:
        `BuiltCall`: `pipe(conditions=built.conditions, **built.call)` makes the call.

    Raises:
        JobError: if an input is missing or wrong.
    """
    files = files or JobFiles()
    objects = Objects(files, canvas_size(job), load or functools.partial(load_from, files, dtype=torch.float32))
    return BuiltCall(
        pipeline_class(job.pipeline),
        objects.components(job),
        [objects.condition(each, f"conditions.{index}") for index, each in enumerate(job.conditions)],
        objects.call(job),
        objects.origins,
    )


def load_from(files: JobFiles, value: ModuleValue, place: str, *, dtype: torch.dtype | None) -> Any:
    """Load a module; raise a [`JobError`] that names its field.

    Args:
        files ([`JobFiles`]): The files of the job.
        value (`ModuleValue`): The module.
        place (`str`): Its field.
        dtype (`torch.dtype`, *optional*): Its data type.

    Returns:
        `Any`
    """
    named = {"subfolder": value.subfolder, "weight_name": value.weight_name, "revision": value.revision}
    try:
        return load_module(value.classes, files.source(value.path), dtype=dtype, **named)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise JobError.of(f"{place}.path", words(error)) from error


def canvas_size(job: Job) -> tuple[int, int]:
    """Return width and height of a job's canvas in pixels, in whole tokens, as far as the job says them."""
    width, height = (getattr(job.call, name) or DEFAULT_SIDE for name in ("width", "height"))
    return max(TOKEN, width // TOKEN * TOKEN), max(TOKEN, height // TOKEN * TOKEN)


def words(error: Exception) -> str:
    """Return the message of an error as a part of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:-1] if text.endswith(".") and not text.endswith("...") else text


class Objects:
    """Makes the objects that the values of a job stand for.

    Args:
        files ([`JobFiles`]): The files of the job.
        size (`tuple[int, int]`): Width and height of the canvas.
        load (`Callable[[ModuleValue, str], Any]`): Loads a module.
    """

    def __init__(self, files: JobFiles, size: tuple[int, int], load: Load) -> None:
        self.files, self.size, self.load = files, size, load
        self.origins = Origins()

    def components(self, job: Job) -> dict[str, Any]:
        """Return the modules of the pipeline that the job names, and the processors that belong to them."""
        cls: Any = pipeline_class(job.pipeline)
        classes = component_classes(cls)
        given = {**job.components, **self._processors(job.components, classes)}
        return {
            name: None if value is None else self.made(value, f"components.{name}") for name, value in given.items()
        }

    def condition(self, values: ConditionValues, place: str) -> FluxCondition:
        """Return a condition; raise a [`JobError`] if its inputs are wrong."""
        make = condition_class(values.type)
        arguments = replace_leaves(values, place, self.made)
        del arguments["type"]
        return make_condition(make, {**arguments, **self.processors_of(values, place)}, place)

    def processors_of(self, values: ConditionValues, place: str) -> dict[str, Any]:
        """Return the processors that belong to a condition's modules and are not given."""
        modules = {
            name: value for name in values.model_fields_set if isinstance(value := getattr(values, name), ModuleValue)
        }
        classes = {
            name: kinds for name, each in type(values).model_fields.items() if (kinds := _classes(each.annotation))
        }
        found = self._processors(modules, classes)
        return {name: self.made(value, f"{place}.{name}") for name, value in found.items()}

    def call(self, job: Job) -> dict[str, Any]:
        """Return the arguments of the call."""
        arguments = replace_leaves(job.call, "call", self.made)
        arguments.pop(SEED, None)
        return {**arguments, "generator": replace_leaves(job.call.seed, "call.seed", self.made)}

    def made(self, value: Leaf, place: str) -> Any:
        """Return the object that a value stands for."""
        return self.origins.add(self._object(value, place), value.model_dump(mode="json", exclude_defaults=True))

    def _object(self, value: Leaf, place: str) -> Any:
        if isinstance(value, ImageValue):
            return self.files.image(value, place)
        if isinstance(value, RegionValue):
            return self._region(value, place)
        if isinstance(value, TensorValue):
            return self.files.tensor(value, place)
        if isinstance(value, SeedValue):
            return torch.Generator().manual_seed(value.root)
        if isinstance(value, LoRAValue):
            return lora_source(value, self.files, place)
        return self.load(value, place)

    def _region(self, value: RegionValue, place: str) -> Any:
        region = self.files.region(value, place, self.size)
        # Regions of a call may belong to an image of another size, where only fractions can be checked.
        if isinstance(region, tuple) and (max(region) <= 1 or place.startswith("conditions.")):
            try:
                box_in_pixels(region, *self.size)
            except ValueError as error:
                raise JobError.of(place, words(error)) from error
        return region

    def _processors(self, given: Mapping[str, Any], classes: Mapping[str, tuple[type, ...]]) -> dict[str, ModuleValue]:
        """Return processors that stand beside the modules that they belong to, by name: `mllm_processor` to `mllm`."""
        found = {}
        for name, kinds in classes.items():
            owner = given.get(name.removesuffix(PROCESSOR)) if name.endswith(PROCESSOR) and name not in given else None
            path = None if owner is None else self._processor_path(owner, name)
            if path is not None:
                found[name] = module_value(kinds)(path=path)
        return found

    def _processor_path(self, owner: ModuleValue, name: str) -> str | None:
        path = Path(self.files.source(owner.path))
        if not path.exists():
            return owner.path if is_repository(owner.path) else None
        folder = path / (owner.subfolder or "")
        candidates = (folder / "processor", folder.parent / name, folder)
        return next((str(each) for each in candidates if (each / "preprocessor_config.json").is_file()), None)


def make_condition(make: type[FluxCondition], arguments: Mapping[str, Any], place: str) -> FluxCondition:
    """Make a condition.

    Args:
        make (`type`): Its class.
        arguments (`Mapping[str, Any]`): Its fields.
        place (`str`): Its place in the job.

    Returns:
        `FluxCondition`

    Raises:
        JobError: if they are wrong; the field is the one that the condition's own error names.
    """
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        named = re.search(rf"`(\w+)[^`]*` of {make.__name__}\b", str(error)) or re.match(r"`(\w+)`", str(error))
        known = named is not None and named[1] in make.__dataclass_fields__
        message = words(error)
        if known and named is not None and message.startswith(start := f"{named[0]} "):
            message = message.removeprefix(start)
        raise JobError.of(f"{place}.{named[1]}" if known and named is not None else place, message) from error


def call_error(error: Exception, job: Job) -> JobError:
    """Return the error of a call as one of its job, with the field that the message names."""
    if isinstance(error, JobError):
        return error
    named = re.search(r"`(\w+)[^`]*`(?: of (\w+))?", str(error))
    places = [f"conditions.{index}" for index, each in enumerate(job.conditions) if named and each.type == named[2]]
    if named and len(places) == 1 and named[1] in type(job.conditions[int(places[0].partition(".")[2])]).model_fields:
        return JobError.of(f"{places[0]}.{named[1]}", words(error))
    in_call = named is not None and named[2] in (None, "the") and named[1] in type(job.call).model_fields
    return JobError.of(f"call.{named[1]}" if in_call and named else "", words(error))


def lora_source(value: LoRAValue, files: JobFiles, place: str) -> str:
    """Return the path of a LoRA.

    Args:
        value (`LoRAValue`): The LoRA.
        files ([`JobFiles`]): The files of the job.
        place (`str`): Its field, for errors.

    Returns:
        `str`: a file or a folder, or a repository.

    Raises:
        JobError: if there is no such file, or it is a file of a repository, which has to be loaded by its parts.
    """
    if value.path == TINY:
        path = Path(named_lora(TINY, value.weight_name))
    else:
        path = Path(files.source(value.path))
        if not path.exists() and is_repository(value.path) and place.startswith("loras."):
            return value.path
        path = path / value.weight_name if value.weight_name is not None else path
    if not path.exists():
        name = value.path if value.weight_name is None else f"{value.path}/{value.weight_name}"
        raise JobError.of(f"{place}.path", f"there is no file or folder `{name}`")
    return str(path)


def _classes(annotation: Any) -> tuple[type, ...]:
    options: Sequence[Any] = (annotation, *getattr(annotation, "__args__", ()))
    return next((each.classes for each in options if isinstance(each, type) and issubclass(each, ModuleValue)), ())


def several(problems: Sequence[Problem]) -> None:
    """Raise a [`JobError`] if there are problems."""
    if problems:
        raise JobError(list(dict.fromkeys(problems)))
