"""Guards for a streamed module that is moved, cast, saved, loaded or fused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .stream import STREAM, DiskStream
from .weights import StreamedBlock, StreamedWeight


_REFUSED = {
    "fuse_lora": "LoRAs cannot be fused into weights on disk: leave them unfused, which gives the same result",
    "fuse_qkv_projections": "projections on disk cannot be fused: fuse them before streaming",
    "enable_layerwise_casting": "weights on disk are cast as they are read; stream with a `storage_dtype` instead",
}
_GUARDED = ("_apply", "save_pretrained", *_REFUSED)
_HANDLES = "_flux_ext_disk_stream_handles"
# What streaming puts into a module itself.
MARKS = (*_GUARDED, _HANDLES, STREAM)


def add_guards(module: nn.Module, stream: DiskStream, folders: set[Path]) -> None:
    """Override methods of `module` with ones that handle streamed weights."""
    weights = {weight.name: (weight, block) for block in stream.blocks for weight in block.weights}
    module.__dict__["_apply"] = partial(_apply, module, stream)
    if hasattr(module, "save_pretrained"):
        module.__dict__["save_pretrained"] = partial(_save_pretrained, module, folders)
    for name, reason in _REFUSED.items():
        if hasattr(module, name):
            module.__dict__[name] = partial(_refuse, name, reason)
    handles = [module.register_load_state_dict_pre_hook(partial(_refuse_load, weights))]
    files = _MappedFiles()
    for weight, block in weights.values():
        handles.append(weight.owner.register_state_dict_post_hook(_StateDictHook(weight, block, files)))
    module.__dict__[_HANDLES] = handles


def remove_guards(module: nn.Module) -> None:
    """Restore the methods of the class of `module`."""
    for handle in module.__dict__.pop(_HANDLES):
        handle.remove()
    for name in _GUARDED:
        module.__dict__.pop(name, None)


def _apply(module: nn.Module, stream: DiskStream, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Run `Module._apply` on resident weights; streamed ones take on their device and data type."""
    type(module)._apply(module, fn, recurse)
    stream.release()
    for block in stream.blocks:
        for weight in block.weights:
            weight.dtype = fn(torch.empty(0, dtype=weight.dtype, device=stream.device)).dtype
    device = fn(torch.empty(0, device=stream.device)).device
    if device != stream.device and device.type != "meta":
        stream.move(device)
    for block in stream.blocks:
        for weight in block.weights:
            weight.take_away(stream.device)
    return module


def _save_pretrained(module: Any, folders: set[Path], save_directory: str | os.PathLike[str], *args: Any,
                     **kwargs: Any) -> Any:  # fmt: skip
    if Path(save_directory).resolve() in folders:
        raise ValueError(
            f"`{save_directory}` is the folder that the module is streamed from, and saving would overwrite it while "
            "it is read. Save to another folder."
        )
    return type(module).save_pretrained(module, save_directory, *args, **kwargs)


def _refuse(name: str, reason: str, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"`{name}` was called on a module that is streamed from disk: {reason}.")


def _refuse_load(weights: Mapping[str, Any], module: nn.Module, state_dict: Mapping[str, Any], *args: Any) -> None:
    given = [key for key in state_dict if key.replace(".base_layer.", ".") in weights]
    if given:
        raise RuntimeError(
            f"`load_state_dict` was given `{given[0]}`, which is streamed from disk ({len(given)} such keys). Call "
            "`stop_disk_streaming` first, or stream from a file with the new weights."
        )


class _MappedFiles:
    """Maps files into memory on first use; nothing is read before a tensor is used."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}

    def tensor(self, weight: StreamedWeight, block: StreamedBlock) -> Tensor:
        """Return a weight as it is stored."""
        if weight.path is None:
            assert block.kept is not None
            return weight.stored(block.kept)
        if weight.path not in self._files:
            self._files[weight.path] = safe_open(weight.path, framework="pt")
        return self._files[weight.path].get_tensor(weight.name)


class _StateDictHook:
    """Adds a streamed weight to the state dict of its owner."""

    def __init__(self, weight: StreamedWeight, block: StreamedBlock, files: _MappedFiles) -> None:
        self._weight, self._block, self._files = weight, block, files

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
        state_dict[prefix + self._weight.attribute] = self._files.tensor(self._weight, self._block)
