"""Recognise caches of other libraries by what they leave on a transformer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class ForeignCache:
    """A cache that another library has put on a transformer.

    Args:
        name (`str`): What error messages call it.
        keeps_residuals (`bool`): Whether ControlNet residuals reach the blocks and count once.
        separates_branches (`bool`): Whether each branch of guidance has a state of its own.
        remedy (`str`): What to do about guidance.
    """

    name: str
    keeps_residuals: bool
    separates_branches: bool
    remedy: str


def foreign_cache(transformer: torch.nn.Module) -> ForeignCache | None:
    """Return the cache of another library that a transformer runs with, or `None`.

    Args:
        transformer (`torch.nn.Module`): The transformer.

    Returns:
        `ForeignCache`, *optional*: cache-dit; ParaAttention's, xDiT's and others that replace the blocks by one
        module; or TeaCache's published patch of `forward`.
    """
    settings = getattr(transformer, "_context_kwargs", None)
    if getattr(transformer, "_is_cached", False) and isinstance(settings, dict) and "cache_config" in settings:
        separate = bool(getattr(settings["cache_config"], "enable_separate_cfg", False))
        return ForeignCache("cache-dit", False, separate, "Give its cache config `enable_separate_cfg=True`")
    if getattr(transformer, "_is_cached", False) or _swaps_blocks(transformer):
        remedy = "Take it off, and use `TeaCacheConfig` or `FirstBlockCacheConfig`"
        return ForeignCache("another library's cache around its blocks (ParaAttention, xDiT)", False, False, remedy)
    if getattr(transformer, "enable_teacache", False) and hasattr(transformer, "accumulated_rel_l1_distance"):
        remedy = "Restore the class' `forward`, and use `apply_tea_cache` of this package"
        return ForeignCache("TeaCache's published patch of `forward`", True, False, remedy)
    return None


def empty_foreign_cache(transformer: torch.nn.Module) -> None:
    """Empty what cache-dit keeps on a transformer that it was given without a pipeline.

    With a pipeline, cache-dit resets itself at each call.

    Args:
        transformer (`torch.nn.Module`): The transformer, with any cache or none.
    """
    library: Any = sys.modules.get("cache_dit")
    manager = getattr(transformer, "_context_manager", None)
    if library is not None and getattr(manager, "persistent_context", False):
        library.refresh_context(transformer)


def _swaps_blocks(transformer: torch.nn.Module) -> bool:
    """Whether the transformer's instance-level `forward` holds blocks that are not among its submodules."""
    forward = transformer.__dict__.get("forward")
    return any(isinstance(part, torch.nn.ModuleList) for part in _held_by(forward))


def _held_by(function: Any) -> Iterator[Any]:
    """Everything that a function, what it wraps, and diffusers' hooks around it keep in closures."""
    waiting, seen = [function], set()
    while waiting:
        part = waiting.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, partial):
            waiting += [part.func, *part.args]
        elif not isinstance(part, torch.nn.Module):
            waiting += _closure(part)
            waiting += [
                getattr(part, name, None) for name in ("__func__", "__wrapped__", "forward", "original_forward")
            ]


def _closure(function: Any) -> list[Any]:
    values = []
    for cell in getattr(function, "__closure__", None) or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            # The name has no value yet.
            continue
    return values
