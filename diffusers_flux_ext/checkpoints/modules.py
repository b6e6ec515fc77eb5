"""Small models whose published key names are known: reading a file, and filling a model with exactly its tensors."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .layouts import list_keys


ModuleT = TypeVar("ModuleT", bound=nn.Module)
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")


def read_weights_file(path: str | Path) -> Mapping[str, Any]:
    """
    Reads a file of weights: safetensors, or a pickle such as `ip-adapter.bin` without its code.

    Args:
        path (`str` or `Path`):
            Local file. Anything that does not end in `.safetensors` or `.sft` is read as a pickle of tensors only.

    Returns:
        `Mapping`: the state dict, which may be nested, as it stands in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or a pickle holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`. Pass a local path, such as `hf_hub_download` returns.")
    try:
        if path.suffix in SAFETENSORS_SUFFIXES:
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`{path}` cannot be read as safetensors: {error}") from error
    try:
        # Mapped, so that a part of a large file can be read; only zip files can be, which all but very old ones are.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # The unpickler raises whatever a hostile byte makes it run into.
    except Exception as error:
        raise ValueError(
            f"`{path}` is no pickle of plain tensors ({type(error).__name__}); others are not read: they could run "
            "code."
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"`{path}` holds a {type(loaded).__name__}; expected a state dict.")
    return loaded


def read_tensors(source: str | Path | Mapping[str, torch.Tensor], wrappers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Tensors by key, of a local safetensors file, a pickle of tensors only, or a state dict.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`): What to read.
        wrappers (`tuple[str, ...]`): Prefixes that training code may have put before every key; one is taken off.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read.
    """
    tensors = dict(source) if isinstance(source, Mapping) else dict(read_weights_file(source))
    for wrapper in wrappers:
        if tensors and all(key.startswith(wrapper) for key in tensors):
            return {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return tensors


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
        ValueError: if tensors are missing, surplus or of another shape.
    """
    expected = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    given = {key: tuple(weight.shape) for key, weight in weights.items()}
    wrong = sorted(key for key in expected | given if expected.get(key) != given.get(key))
    if wrong:
        raise ValueError(
            f"These tensors are missing, surplus or of a wrong shape for {type(model).__name__}: {list_keys(wrong)}."
        )
    copies = {key: weight.to(device=device, dtype=dtype, copy=True) for key, weight in weights.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()
