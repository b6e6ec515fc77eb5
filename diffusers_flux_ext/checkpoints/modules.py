"""Small models whose published key names are known: reading a file, and filling a model with exactly its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .messages import list_keys
from .reading import DTYPES, check_state_dict, read_weights_file


__all__ = ["FLOATS", "check_floating", "check_shapes", "fill_module", "read_tensors", "read_weights_file"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FLOATS = frozenset(dtype for dtype in DTYPES.values() if dtype.is_floating_point)


def read_tensors(source: str | Path | Mapping[str, torch.Tensor], wrappers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read tensors by key from a local safetensors file, a pickle of tensors only, or a state dict.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`): What to read.
        wrappers (`tuple[str, ...]`): Prefixes that training code may have put before every key; one is removed.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, or holds anything but tensors.
    """
    tensors = dict(source) if isinstance(source, Mapping) else dict(read_weights_file(source))
    nested = [key for key, value in tensors.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(f"A state dict holds others: {list_keys(nested)}. Pass the one that holds the weights.")
    check_state_dict(tensors)
    for wrapper in wrappers:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            return {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return tensors


def check_floating(dtypes: Mapping[str, torch.dtype]) -> None:
    """Raise a `ValueError` if the data type of a weight is not floating-point.

    Args:
        dtypes (`Mapping[str, torch.dtype]`): Data types by key.
    """
    odd = {key: dtype for key, dtype in dtypes.items() if dtype not in FLOATS}
    if odd:
        kinds = ", ".join(sorted({str(dtype) for dtype in odd.values()}))
        raise ValueError(
            f"Weights must be floating-point numbers, got {kinds}: {list_keys(odd)}. Files that were quantised to "
            "whole numbers are not read: pass the original ones."
        )


def check_shapes(model: nn.Module, given: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors of these shapes are exactly those of a model.

    Args:
        model (`nn.Module`): The model, which may be on the meta device.
        given (`Mapping[str, tuple[int, ...]]`): Shapes by its keys.

    Raises:
        ValueError: If tensors are missing, surplus or of another shape.
    """
    expected = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    wrong = sorted(key for key in expected | dict(given) if expected.get(key) != given.get(key))
    if wrong:
        raise ValueError(
            f"These tensors are missing, surplus or of a wrong shape for {type(model).__name__}: {list_keys(wrong)}."
        )


def fill_module(
    model: ModuleT,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> ModuleT:
    """Give a model, which may be on the meta device, copies of these weights.

    Args:
        model (`nn.Module`): The model.
        weights (`Mapping[str, torch.Tensor]`): One tensor for each of its keys.
        dtype (`torch.dtype`, *optional*): Data type of the copies; that of each tensor by default.
        device (`str` or `torch.device`, *optional*): Their device; that of each tensor by default.

    Returns:
        `nn.Module`: the model, in eval mode.

    Raises:
        ValueError: if tensors are missing, surplus, of another shape, or not floating-point numbers.
    """
    wanted = model.state_dict()
    check_shapes(model, {key: tuple(weight.shape) for key, weight in weights.items()})
    check_floating({key: weights[key].dtype for key, weight in wanted.items() if weight.is_floating_point()})
    copies = {
        key: weight.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
        for key, weight in weights.items()
    }
    model.load_state_dict(copies, assign=True)
    return model.eval()
