"""From the objects of a call to a job."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from ..condition import FluxCondition, check_conditions
from ..tiny import TINY, named_model
from .arguments import NOT_DATA, SEED, component_classes
from .errors import JobError
from .job import VERSION, Job
from .origins import Origins
from .reading import read_job


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes of images that PNG keeps as they are."""


def job_from_call(
    pipeline: Any,
    *,
    model: str | Mapping[str, Any] | None = None,
    modules: Mapping[str, Any] | None = None,
    conditions: Sequence[FluxCondition] = (),
    loras: Sequence[Mapping[str, Any]] = (),
    origins: Origins | None = None,
    **call: Any,
) -> Job:
    """Describe a call of a pipeline as a job.

    Images become PNG files in `data:` URLs, and tensors and arrays `.safetensors` and `.npy` files in them, so that
    [`build_call`] makes equal objects; with `origins` they are what they were in the job that they come from.

    Args:
        pipeline (`FluxConditionedPipeline` or its class): What is called.
        model (`str` or `Mapping`, *optional*): The model; where the pipeline was loaded from by default.
        modules (`Mapping[str, Any]`, *optional*):
            By path, the modules of conditions and the pipeline's components that its model does not have. Modules
            that `from_pretrained` made know their paths.
        conditions (`Sequence[FluxCondition]`): The conditions.
        loras (`Sequence[Mapping]`): The LoRAs that are loaded, each with `path`, `weight` and so on.
        origins (`Origins`, *optional*): What objects were in a job, see [`BuiltCall`].
        call: The other arguments of the call.

    Returns:
        `Job`

    Raises:
        JobError: if something cannot be expressed, such as a callback or a generator that has been used.
    """
    cls = pipeline if isinstance(pipeline, type) else type(pipeline)
    spelled = _Spelling(modules or {}, origins or Origins())
    config = {} if isinstance(pipeline, type) else dict(getattr(pipeline, "config", {}))
    path = model or config.get("_name_or_path")
    if not path:
        raise JobError.of("model", "is not known; give `model`, what the pipeline was loaded from")
    content: dict[str, Any] = {
        "version": VERSION,
        "model": TINY if path == named_model(TINY) else path,
        "pipeline": cls.__name__,
        "components": {} if isinstance(pipeline, type) else spelled.components(pipeline),
        "loras": [dict(each) for each in loras],
        "conditions": [
            spelled.condition(each, f"conditions.{i}") for i, each in enumerate(check_conditions(conditions))
        ],
        "call": spelled.call(call),
    }
    return read_job(content)


class _Spelling:
    def __init__(self, modules: Mapping[str, Any], origins: Origins) -> None:
        self.origins = origins
        self.paths = {id(module): path for path, module in modules.items()}

    def components(self, pipeline: Any) -> dict[str, Any]:
        """Return the components that the caller has named a path of."""
        cls: Any = type(pipeline)
        given = {name: getattr(pipeline, name, None) for name in component_classes(cls)}
        return {
            name: self.value(module, f"components.{name}")
            for name, module in given.items()
            if module is not None and (id(module) in self.paths or module in self.origins)
        }

    def condition(self, condition: FluxCondition, place: str) -> dict[str, Any]:
        """Return a condition; its defaults are left out."""
        content: dict[str, Any] = {"type": type(condition).__name__}
        for each in fields(condition):
            value = getattr(condition, each.name)
            if value is not each.default:
                content[each.name] = self.value(value, f"{place}.{each.name}")
        return content

    def call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, with `seed` in the generator's place."""
        content = {}
        for name, value in call.items():
            if name == "generator":
                if value is not None:
                    content[SEED] = self.value(value, "call.generator")
            elif name not in NOT_DATA:
                content[name] = self.value(value, f"call.{name}")
            elif value is not None and name not in ("output_type", "return_dict"):
                raise JobError.of(f"call.{name}", f"cannot be a part of a job: {NOT_DATA[name]}")
        return content

    def value(self, value: Any, place: str) -> Any:
        """Return what stands for an object."""
        if value is not None and value in self.origins:
            return self.origins[value]
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {str(name): self.value(each, f"{place}.{name}") for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each, f"{place}.{index}") for index, each in enumerate(value)]
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, torch.Generator):
            return _seed(value, place)
        if isinstance(value, (Image.Image, np.ndarray, torch.Tensor)) and not isinstance(value, torch.nn.Parameter):
            return _inline(value, place)
        return {"path": self._path(value, place)}

    def _path(self, module: Any, place: str) -> str:
        path = self.paths.get(id(module)) or getattr(getattr(module, "config", None), "_name_or_path", None)
        if not path:
            raise JobError.of(
                place, f"no path is known of this {type(module).__name__}; give it in `modules`, by its path"
            )
        return str(path)


def _seed(generator: torch.Generator, place: str) -> int:
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    if not torch.equal(generator.get_state(), fresh.get_state()) or generator.device.type != "cpu":
        raise JobError.of(
            place, "is a generator that has been used, or one of a device; a job has the seed of a new one on the CPU"
        )
    return seed


def _inline(value: Image.Image | np.ndarray | torch.Tensor, place: str) -> str:
    stream = io.BytesIO()
    if isinstance(value, Image.Image):
        if value.mode not in MODES:
            raise JobError.of(
                place, f"is an image of the mode {value.mode}, which PNG does not have; convert it to RGB"
            )
        # Pixels alone: what else the image knows does not change what is drawn.
        value.save(stream, "PNG", exif=b"", icc_profile=None)
        kind = "image/png"
    elif isinstance(value, np.ndarray):
        np.save(stream, value, allow_pickle=False)
        kind = "application/x-npy"
    else:
        stream.write(safetensors.torch.save({"tensor": value.detach().cpu().contiguous()}))
        kind = "application/x-safetensors"
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
