"""Reading the weights of a transformer one by one, in the requested layout."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.gguf_files import is_gguf
from ...checkpoints.layouts import (
    TransformerLayout,
    detect_transformer_layout,
    list_keys,
    plan_transformer_conversion,
)
from ..errors import LoRAError, naming_files
from ..files import open_lora


FLOATS = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
})  # fmt: skip
_QUANTISED = "Quantised weights cannot be worked on; give the checkpoint that they were made from."
TransformerSource = str | os.PathLike[str] | Mapping[str, Tensor]


@dataclass(frozen=True)
class OpenedTransformer:
    """A transformer's weights.

    Attributes:
        layout (`str`): The layout that they were found in.
        shapes (`dict[str, tuple[int, ...]]`): Shapes by key, in the requested layout.
        read (`Callable[[str], torch.Tensor]`): Returns the weight of a key; it may share memory with the file.
        metadata (`dict[str, str]`): The file's header.
    """

    layout: TransformerLayout
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    metadata: dict[str, str]


def open_transformer(source: TransformerSource, layout: TransformerLayout | None = None) -> OpenedTransformer:
    """Open a transformer without reading its weights.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder with the files of a sharded model, or a state dict.
        layout (`str`, *optional*):
            The layout to read it in: `"diffusers"`, `"bfl"` or `"diffsynth"`; the one it has by default.

    Returns:
        `OpenedTransformer`: Its shapes, and how to read them.

    Raises:
        LoRAError: If it cannot be read or is not a FLUX.1 transformer.
    """
    with naming_files(source):
        tensors, metadata = _tensors(source)
        _check_weights(tensors)
        try:
            found = detect_transformer_layout(tensors)
            plan = plan_transformer_conversion({key: tensor.shape for key, tensor in tensors.items()}, layout or found)
        except ValueError as error:
            raise LoRAError(str(error)) from error
    shapes = {key: tuple(recipe.shape) for key, recipe in plan.items()}
    return OpenedTransformer(found, shapes, lambda key: plan[key].build(tensors.__getitem__), metadata)


def _check_weights(tensors: Mapping[str, Any]) -> None:
    odd = [key for key, tensor in tensors.items() if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS]
    if odd:
        what = getattr(tensors[odd[0]], "dtype", type(tensors[odd[0]]).__name__)
        raise LoRAError(
            f"{len(odd)} weights are not floating-point numbers: {list_keys(odd)}, the first is {what}. {_QUANTISED}"
        )


def _tensors(source: TransformerSource) -> tuple[Mapping[str, Any], dict[str, str]]:
    if isinstance(source, Mapping):
        return source, {}
    path = Path(source)
    if is_gguf(path):
        raise LoRAError(f"`{path}` is a GGUF file. {_QUANTISED}")
    if not path.is_dir():
        opened = open_lora(path)
        return opened.tensors, opened.metadata
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LoRAError(f"`{path}` has no safetensors files of a transformer.")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        shard = open_lora(file).tensors
        if twice := sorted(tensors.keys() & shard.keys()):
            raise LoRAError(f"`{folder}` holds several models: `{twice[0]}` is in more than one file. Give one file.")
        tensors.update(shard)
    return tensors, {}
