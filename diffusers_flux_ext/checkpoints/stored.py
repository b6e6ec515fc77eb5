"""Where each tensor is stored, in one safetensors file or in several with an index."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .messages import list_keys, shorten
from .reading import DTYPES, check_file, open_safetensors, read_json


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file.

    Attributes:
        name (`str`): Its key.
        path (`Path`): The file.
        dtype (`torch.dtype`): Its data type in the file.
        shape (`tuple[int, ...]`): Its shape.
        start (`int`): Its first byte, counted from the beginning of the file.
        stop (`int`): The byte after its last.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def read_layout(source: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Find where the tensors of a model are stored. No tensor is read.

    Args:
        source (`str` or `os.PathLike`):
            A safetensors file, the index of several, or a folder as `save_pretrained` writes it: one safetensors file,
            or several and an index.

    Returns:
        `dict[str, StoredTensor]`: The tensors by key.

    Raises:
        FileNotFoundError: If the source or a file of the index is missing.
        ValueError: If a header is broken, does not fit its file's size, or disagrees with the index.
        OSError: If something cannot be read.
    """
    source = Path(source)
    if not source.is_dir():
        is_index = source.name.endswith(".index.json")
        return _read_indexed(source) if is_index else _read_header(check_file(source))
    indices = sorted(source.glob("*.safetensors.index.json"))
    files = sorted(source.glob("*.safetensors"))
    if len(indices) == 1:
        return _read_indexed(indices[0])
    if indices or len(files) != 1:
        found = [path.name for path in [*indices, *files]]
        raise ValueError(
            f"`{source}` should hold one safetensors file, or one index of several; found {found or 'none'}. Pass "
            "the path of a single file, or a folder as `save_pretrained` writes it."
        )
    return _read_header(files[0])


def read_index(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the index of a model in several files.

    Args:
        path (`str` or `os.PathLike`): A file such as `model.safetensors.index.json`.

    Returns:
        `dict[str, str]`: The file name of each tensor, beside the index.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an index.
    """
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ValueError(f"`{path}` is not an index of weights: it has no `weight_map` of keys to files.")
    for key, name in index.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"`{path}` says that `{shorten(key)}` lies in `{shorten(name)}`; expected the name of a safetensors "
                "file beside the index."
            )
    return index


def _read_indexed(path: Path) -> dict[str, StoredTensor]:
    index = read_index(path)
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(index.values())):
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"`{path}` names the file `{name}`, which is missing. Download the folder anew.")
        tensors.update(_read_header(path.parent / name))
    found = {key: tensor.path.name for key, tensor in tensors.items()}
    if found != index:
        differing = {key for key in found.keys() | index.keys() if found.get(key) != index.get(key)}
        files = sorted({name for key in differing for name in (found.get(key), index.get(key)) if name})
        raise ValueError(
            f"`{path}` disagrees with the files beside it, {', '.join(files[:5])}: it belongs to other files than "
            f"these. They differ about {list_keys(differing)}."
        )
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    with open_safetensors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _entry(name, entry, path, 8 + length) for name, entry in header.items()}


def _entry(name: str, entry: Mapping[str, Any], path: Path, base: int) -> StoredTensor:
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"`{path}` is broken: `{shorten(name)}` of shape {shape} and {dtype} cannot lie at bytes {start} to "
            f"{stop}."
        )
    return StoredTensor(name, path, dtype, shape, base + start, base + stop)
