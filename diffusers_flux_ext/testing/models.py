"""Tiny models of a class and a config, made once and copied."""

import json
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn

from .weights import randomise


M = TypeVar("M", bound=nn.Module)
_first: dict[tuple[Any, int, str], nn.Module] = {}
# Anything else is copied as `copy.deepcopy` does it.
_IMMUTABLE = {bool, float, int, str, type(None), torch.device, torch.dtype}


def make_model(make: Callable[..., M], config: dict[str, Any], seed: int = 0) -> M:
    """Make a model with seeded weights; see [`randomise`].

    A model of the same class, config and seed is built once and copied from then on, which takes a fifth of the time.

    Args:
        make (`Callable`):
            The class, or a function that builds the model.
        config (`dict[str, Any]`):
            Its arguments.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        `nn.Module`: A model that shares nothing with those of other calls, frozen and in eval mode.
    """
    try:
        json.dumps(config)
    except TypeError:
        return randomise(make(**config), seed)
    # Unlike JSON, this tells tuples from lists.
    key = make, seed, repr(sorted(config.items()))
    if key not in _first:
        _first[key] = randomise(make(**config), seed)
    return copy_model(_first[key])  # type: ignore[return-value]


def copy_model(model: M, memo: dict[int, Any] | None = None) -> M:
    """Copy a model as `copy.deepcopy` does, with less work for each of its modules.

    Args:
        model (`nn.Module`):
            The model.
        memo (`dict[int, Any]`, *optional*):
            What has been copied already.

    Returns:
        `nn.Module`: The copy.
    """
    memo = {} if memo is None else memo
    if id(model) in memo:
        return memo[id(model)]
    made = memo[id(model)] = type(model).__new__(type(model))
    for name, value in vars(model).items():
        made.__dict__[name] = value if type(value) in _IMMUTABLE else _copied(name, value, memo)
    return made


def _copied(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if type(value) in (dict, list, set, OrderedDict) and not value:
        return value.copy()
    if type(value) is tuple and all(type(part) in _IMMUTABLE for part in value):
        return value
    if name == "_modules":
        return type(value)((key, None if child is None else copy_model(child, memo)) for key, child in value.items())
    if name in ("_parameters", "_buffers"):
        return type(value)((key, _tensor(tensor, memo)) for key, tensor in value.items())
    return deepcopy(value, memo)


def _tensor(tensor: torch.Tensor | None, memo: dict[int, Any]) -> Any:
    if tensor is None or type(tensor) not in (nn.Parameter, torch.Tensor):
        return deepcopy(tensor, memo)
    # Weights that are tied stay so.
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]
