"""Untrained modules of all methods, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ...methods import METHODS, Method, Trainable
from ...methods.method import resolve


def trainable_modules() -> dict[str, tuple[Method, Trainable]]:
    """Return the modules of all methods that can be trained, by name."""
    return {name: (method, record) for method in METHODS.values() for name, record in method.trains.items()}


def from_scratch(
    name: str, transformer: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Any:
    """Make an untrained module of a method, of the sizes that fit a transformer.

    Args:
        name (`str`): One of [`trainable_modules`], such as `"controlnet"`.
        transformer (`FluxTransformer2DModel`): The model that it will be used with.
        seed (`int`, defaults to 0): Seed of the weights that are drawn.
        dtype (`torch.dtype`, defaults to `torch.float32`): Data type.
        sizes: Arguments of the method's maker, such as `num_layers=4`.

    Returns:
        `torch.nn.Module`: on the transformer's device. ControlNets, InfuseNet and IP-Adapters change nothing before
        the first update; the others are random.

    Raises:
        ValueError: if there is no such module, or a size is out of range.
        TypeError: if the module has no such size.
    """
    known = trainable_modules()
    if name not in known:
        raise ValueError(f"`name` is {name!r}; expected one of {sorted(known)}.")
    method, record = known[name]
    make: Callable[..., Any] = resolve(method.package, record.make)
    _check_sizes(name, make, method, record, sizes)
    # `manual_seed` would also change what the caller draws later.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make(transformer, **sizes)
    # Not the library's own `to`, which warns of what it would do to weights that mean something.
    return nn.Module.to(module, transformer.device, dtype)


def _check_sizes(
    name: str, make: Callable[..., Any], method: Method, record: Trainable, sizes: Mapping[str, Any]
) -> None:
    taken = inspect.signature(make).parameters
    accepted = [each for each, parameter in taken.items() if parameter.kind is parameter.KEYWORD_ONLY]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        accepted += list(inspect.signature(resolve(method.package, record.module)).parameters)
    unknown = [each for each in sizes if each not in accepted]
    if unknown:
        raise TypeError(f"A module {name!r} has no sizes {unknown}; it takes {accepted}.")


def find_record(module: nn.Module) -> tuple[Method, Trainable] | None:
    """Return the method that a module belongs to and its record, or `None` for any other module."""
    for method, record in trainable_modules().values():
        if isinstance(module, resolve(method.package, record.module)):
            return method, record
    return None
