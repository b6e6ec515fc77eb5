"""From names that clients give to places that only the server knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..jobs import Job
from ..jobs.sections import LoRASection, ModelSection
from ..jobs.values import LoRAValue, ModuleValue, Referenced
from ..tiny import TINY
from .served import Served, one_of, refuse_further


def resolve(job: Job, served: Served) -> Job:
    """Put the server's own places in for every name in a job.

    The job's own types say what is loaded from a path, so that nothing else can be one.

    Args:
        job (`Job`): The job in a client's words.
        served (`Served`): What the server offers.

    Returns:
        `Job`: the job with paths, which no client is told.

    Raises:
        RequestError: if a name is not offered, or a file is described further than by a name.
    """
    found: Job = _resolved(job, "", served)
    return found


def _resolved(value: Any, place: str, served: Served) -> Any:
    if isinstance(value, Referenced):
        return _referenced(value, place, served)
    if isinstance(value, (list, tuple)):
        return tuple(_resolved(each, f"{place}.{index}", served) for index, each in enumerate(value))
    if isinstance(value, Mapping):
        return {name: _resolved(each, f"{place}.{name}", served) for name, each in value.items()}
    if isinstance(value, BaseModel):
        changed = {
            name: _resolved(getattr(value, name), f"{place}.{name}".removeprefix("."), served)
            for name in value.model_fields_set
        }
        return value.model_copy(update=changed)
    return value


def _referenced(value: Referenced, place: str, served: Served) -> Referenced:
    given = value.model_dump(exclude_unset=True)
    if isinstance(value, ModelSection):
        refuse_further(given, place)
        return ModelSection(**one_of(served.models, value.path, f"{place}.path").model)
    if isinstance(value, LoRAValue):
        return _lora(value, given, place, served)
    if isinstance(value, ModuleValue):
        refuse_further(given, place)
        return type(value)(**one_of(served.modules, value.path, f"{place}.path").module)
    raise TypeError(f"`{place}` refers to a {type(value).__name__}, for which there is no rule.")


def _lora(value: LoRAValue, given: Mapping[str, Any], place: str, served: Served) -> LoRAValue:
    name = value.path
    if name == TINY and f"{value.weight_name}".removesuffix(".safetensors") in served.loras:
        # Those that are shipped are files of one name, and are offered by their own.
        name = f"{value.weight_name}".removesuffix(".safetensors")
    else:
        refuse_further({key: each for key, each in given.items() if key != "weight"}, place)
    lora = one_of(served.loras, name, f"{place}.path")
    if isinstance(value, LoRASection):
        return LoRASection(**lora.lora, weight=value.weight if "weight" in given else lora.weight)
    return type(value)(**lora.lora)
