"""From the annotation of a field or an argument to how a job spells it."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from PIL import Image
from pydantic import Field, JsonValue

from ..methods.loading import is_loadable
from .values import ImageValue, LoRAValue, ModuleValue, RegionValue, SeedValue, TensorValue


_PLAIN: dict[Any, Any] = {
    str: str,
    NoneType: None,
    bool: Annotated[bool, Field(strict=True)],
    int: Annotated[int, Field(strict=True)],
    float: Annotated[float, Field(strict=True, allow_inf_nan=False)],
    Any: JsonValue,
}
_TENSORS = (torch.Tensor, np.ndarray)
_LISTS = (list, tuple, Sequence)
_MAPPINGS = (dict, Mapping)


def job_type(annotation: Any) -> Any:
    """Return the type of a value in a job.

    Args:
        annotation (`Any`): A resolved annotation.

    Returns:
        The type for pydantic; `NotImplemented` if a job cannot express any such value.
    """
    options = _options(annotation)
    pixels = Image.Image in _leaves(annotation)
    found: list[Any] = []
    if Image.Image in options:
        boxes = [each for each in options if get_args(each) == (float,) * 4]
        found.append(RegionValue if boxes else ImageValue)
        options = [each for each in options if each not in (Image.Image, *_TENSORS, *boxes)]
    if any(
        isinstance(each, type) and issubclass(get_origin(each) or each, os.PathLike) for each in map(_bare, options)
    ):
        found.append(LoRAValue)
        options = [each for each in options if not _is_source(each)]
    if modules := tuple(each for each in options if is_loadable(each)):
        found.append(module_value(modules))
    found += [_one(each, pixels) for each in options if each not in modules]
    known = [each for each in dict.fromkeys(found) if each is not NotImplemented]
    if not known or known == [None]:
        return NotImplemented
    # Last, since not all of them can be joined to `None` from the right.
    return functools.reduce(operator.or_, sorted(known, key=lambda each: each is None))


def _bare(option: Any) -> Any:
    return get_origin(option) or option


def _is_source(option: Any) -> bool:
    bare = _bare(option)
    return bare is str or (isinstance(bare, type) and issubclass(bare, (os.PathLike, PurePath, *_MAPPINGS)))


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for each in get_args(annotation) for option in _options(each)]
    return [annotation]


def _leaves(annotation: Any) -> list[Any]:
    """Return everything that an annotation is made of."""
    inner = [leaf for each in get_args(annotation) for leaf in _leaves(each)]
    return inner or [annotation]


def _one(option: Any, pixels: bool) -> Any:
    """Translate one branch of a union; tensors beside images are images, too."""
    origin, arguments = get_origin(option), get_args(option)
    if option in _PLAIN:
        return _PLAIN[option]
    if origin is Literal:
        return option
    if option in _TENSORS:
        return ImageValue if pixels else TensorValue
    if option is torch.Generator:
        return SeedValue
    if origin in _LISTS:
        items = [each for each in arguments if each is not Ellipsis]
        inner = job_type(items[0] | Image.Image if pixels and items[0] in _TENSORS else items[0])
        return NotImplemented if inner is NotImplemented else GenericAlias(tuple, (inner, ...))
    if origin in _MAPPINGS:
        inner = job_type(arguments[1])
        return NotImplemented if inner is NotImplemented else GenericAlias(dict, (str, inner))
    return NotImplemented


@functools.cache
def module_value(classes: tuple[type, ...]) -> type[ModuleValue]:
    """Return the value that stands for a module of one of these classes."""
    name = "Or".join(each.__name__ for each in classes)
    return type(
        name, (ModuleValue,), {"classes": classes, "__doc__": inspect.getdoc(ModuleValue), "__module__": __name__}
    )
