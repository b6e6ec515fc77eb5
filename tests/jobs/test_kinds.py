"""From annotations to the values of a job."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from diffusers_flux_ext.inputs.masks import RegionMask
from diffusers_flux_ext.jobs.kinds import job_type
from diffusers_flux_ext.jobs.values import ImageValue, LoRAValue, ModuleValue, RegionValue, SeedValue, TensorValue


def kinds(annotation, value):
    """The classes of what a value is read as."""
    read = TypeAdapter(job_type(annotation)).validate_python(value)
    flat = []
    pending = [read]
    while pending:
        each = pending.pop(0)
        if isinstance(each, (tuple, dict)):
            pending += list(each.values() if isinstance(each, dict) else each)
        else:
            flat.append(type(each))
    return flat


@pytest.mark.parametrize(
    "annotation, value, expected",
    [
        (Image.Image, "a.png", [ImageValue]),
        (Image.Image | np.ndarray | torch.Tensor | list[np.ndarray] | None, ["a.npy"], [ImageValue]),
        (Sequence[Sequence[Image.Image]], [["a.png", "b.png"], ["c.png"]], [ImageValue] * 3),
        (RegionMask, [0, 0, 1, 1], [RegionValue]),
        (RegionMask | Sequence[RegionMask], [[0, 0, 1, 1], "a.png"], [RegionValue] * 2),
        (Sequence[RegionMask | None], [[0, 0, 1, 1], None], [RegionValue, type(None)]),
        (torch.Tensor | np.ndarray | None, "a.npy", [TensorValue]),
        (torch.Tensor | Mapping[str, torch.Tensor], {"x": "a.npy"}, [TensorValue]),
        (torch.Generator | list[torch.Generator] | None, [1, 2], [SeedValue] * 2),
        (str | os.PathLike[str] | Mapping[str, Any], {"path": "a"}, [LoRAValue]),
        (float | Sequence[float], [1, 2.5], [float, float]),
        (Literal["same"] | Mapping[str, float] | None, {"a": 1.0}, [float]),
        (Literal["same"] | Mapping[str, float] | None, "same", [str]),
        (Callable[[], int] | str | None, "text", [str]),
        (tuple[float, ...] | None, None, [type(None)]),
    ],
)
def test_a_value_is_read_as_what_the_annotation_says(annotation, value, expected):
    assert kinds(annotation, value) == expected


def test_a_module_is_one_of_the_annotated_classes():
    read = TypeAdapter(job_type(FluxControlNetModel | torch.nn.Linear | None)).validate_python("folder")
    assert isinstance(read, ModuleValue)
    assert (read.path, read.classes) == ("folder", (FluxControlNetModel, torch.nn.Linear))


def test_code_and_plain_objects_cannot_be_expressed():
    for annotation in (Callable[[int], int] | None, type, object, Sequence[Callable[[], int]], None):
        assert job_type(annotation) is NotImplemented


def test_any_takes_what_json_can_hold():
    adapter = TypeAdapter(job_type(dict[str, Any]))
    assert adapter.validate_python({"scale": [1, {"a": None}]}) == {"scale": [1, {"a": None}]}
    with pytest.raises(ValidationError):
        adapter.validate_python({"scale": object()})
