"""LoRA files on disk: read lazily from their header, written in one stream and renamed when complete."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.messages import shorten
from ..checkpoints.reading import DTYPE_CODES, check_file, load_pickle, open_safetensors, read_json
from ..checkpoints.writing import check_target, written_at_once
from .errors import LoRAError, shortened


logger = logging.getLogger(__name__)

LoRASource = str | os.PathLike[str] | Mapping[str, Any]
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
FOLDER_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
ADAPTER_CONFIG = "adapter_config.json"
# The longest names of FLUX.1's layers have about 120 characters with everything that trainers put around them.
MAX_KEY = 500


@dataclass(frozen=True)
class OpenedLoRA:
    """A LoRA before its keys are interpreted.

    Attributes:
        tensors (`Mapping[str, Any]`):
            Its tensors; those of a safetensors file are mapped into memory and read when they are used.
        metadata (`dict[str, str]`): Its header.
        adapter_config (`dict[str, Any]`, *optional*): PEFT's config beside the file.
        path (`Path`, *optional*): The file.
        is_mapped (`bool`): Whether the tensors are mapped from the file.
    """

    tensors: Mapping[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    adapter_config: dict[str, Any] | None = None
    path: Path | None = None
    is_mapped: bool = False


def open_lora(source: LoRASource) -> OpenedLoRA:
    """Open a LoRA.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): A safetensors file; a pickle, which is read with
            `weights_only=True`; a folder with one of them; or the tensors themselves.

    Returns:
        `OpenedLoRA`: Its tensors and header.

    Raises:
        LoRAError: If there is no such file, or if it is neither a safetensors file nor a pickle of tensors.
    """
    if isinstance(source, Mapping):
        _check_names(source)
        return OpenedLoRA(source)
    if not isinstance(source, str | os.PathLike):
        raise LoRAError(f"A LoRA is {type(source).__name__}; expected a path or a mapping of names to tensors.")
    path = _find_file(Path(source))
    # Beside a file of another name the config may belong to something else.
    has_config = Path(source).is_dir() or path.stem == "adapter_model"
    try:
        beside = path.parent / ADAPTER_CONFIG
        config = read_json(beside) if has_config and beside.is_file() else None
        if path.suffix.lower() in PICKLES:
            return OpenedLoRA(_read_pickle(path), {}, config, path)
        with open_safetensors(path) as file:
            _check_names(file.keys())
            return OpenedLoRA(
                {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}), config, path, True
            )
    except (OSError, ValueError) as error:
        raise LoRAError(f"{error}{_guess(path)}", path) from error


def _find_file(path: Path) -> Path:
    try:
        if not path.exists():
            raise LoRAError(f"There is no file `{path}`.")
        if not path.is_dir():
            return check_file(path)
        found = sorted(child for child in path.iterdir() if child.suffix.lower() in (".safetensors", *PICKLES))
    except LoRAError:
        raise
    except (OSError, ValueError) as error:
        raise LoRAError(f"`{shortened(str(path))}` cannot be read: {error}") from error
    named = [child for child in found if child.name in FOLDER_NAMES] or found
    if len(named) != 1:
        raise LoRAError(
            f"`{path}` is a directory with {len(found)} weight files: {[child.name for child in found[:10]]}. Give "
            "the path of the LoRA's file itself."
        )
    return named[0]


def _check_names(tensors: Iterable[Any]) -> None:
    """Refuse overlong names, which would be costly wherever a name is processed."""
    for name in tensors:
        if not isinstance(name, str) or len(name) > MAX_KEY:
            raise LoRAError(f"A tensor has the name `{shorten(name)}`; expected text of up to {MAX_KEY} characters.")


def _guess(path: Path) -> str:
    """Say what a file that is not a safetensors file is, by its first bytes."""
    if path.suffix.lower() in PICKLES:
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return ""
    if start.startswith(b"version https://git-lfs"):
        return " It is a Git LFS pointer: fetch the file itself, with `git lfs pull`."
    if start.startswith((b"pk\x03\x04", b"\x80")):
        return " It looks like a pickle: rename it to end in `.pt`, and it is read as one, tensors only."
    return " It looks like an HTML page: the download has failed." if start.startswith(b"<") else ""


def _read_pickle(path: Path) -> dict[str, Any]:
    loaded = load_pickle(path)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise LoRAError(f"`{path}` holds a {type(loaded).__name__}; expected a mapping of names to tensors.")
    _check_names(loaded)
    # A few bytes may be expanded to any size, and at most four layers share a factor.
    tensors = [value for value in loaded.values() if isinstance(value, Tensor)]
    taken, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors), path.stat().st_size
    if taken > 4 * size:
        raise LoRAError(f"The tensors of `{path}` take {taken} bytes, and the file has {size}. Was it tampered with?")
    return dict(loaded)


def materialize(entries: Mapping[str, Any], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the tensors of `entries`, each with its own memory.

    Args:
        entries (`Mapping[str, Any]`):
            Tensors that may share memory, and objects with `shape`, `dtype` and `build()` that are computed here.
        dtype (`torch.dtype`, *optional*): What floating-point factors are cast to; alphas keep theirs.

    Returns:
        `dict[str, torch.Tensor]`: Contiguous tensors.
    """
    return {key: _owned(_tensor(key, entry, dtype), entry) for key, entry in entries.items()}


def _owned(tensor: Tensor, entry: Any) -> Tensor:
    if not isinstance(entry, Tensor) or tensor.untyped_storage().data_ptr() != entry.untyped_storage().data_ptr():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _tensor(key: str, entry: Any, dtype: torch.dtype | None) -> Tensor:
    tensor = entry if isinstance(entry, Tensor) else entry.build()
    if dtype is None or not tensor.is_floating_point() or key.endswith(".alpha"):
        return tensor.contiguous()
    cast = tensor.to(dtype).contiguous()
    if not is_finite(cast) and is_finite(tensor):
        raise LoRAError(f"`{key}` has values that {dtype} cannot hold.")
    return cast


def save_lora(
    path: str | os.PathLike[str],
    entries: Mapping[str, Any],
    metadata: Mapping[str, str],
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a safetensors file, one tensor after another, under a temporary name until it is complete.

    safetensors' own `save_file` needs all tensors in memory at once, which joined layers would multiply.

    Args:
        path (`str` or `os.PathLike`): Where to.
        entries (`Mapping[str, Any]`): The tensors, as for [`materialize`].
        metadata (`Mapping[str, str]`): The header's metadata.
        overwrite (`bool`, *optional*, defaults to `False`): Whether an existing file may be replaced.
        dtype (`torch.dtype`, *optional*): What floating-point factors are cast to.

    Raises:
        LoRAError: If the file exists and may not be replaced, if its folder does not, or if writing fails.
    """
    check_writable(path, overwrite)
    # The largest items first keeps every tensor aligned, as in files that safetensors writes.
    order = sorted(entries, key=lambda key: (-_itemsize(key, entries[key], dtype), key))
    try:
        with written_at_once(path) as temporary, temporary.open("wb") as file:
            file.write(_header(order, entries, metadata, dtype))
            for key in order:
                flat = _tensor(key, entries[key], dtype).cpu().reshape(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
    except OSError as error:
        raise LoRAError(str(error), path) from error


def check_writable(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Check that a file can be written.

    Raises:
        LoRAError: If there is something that may not be replaced, or if its folder does not exist.
    """
    try:
        check_target(path, overwrite)
    except (OSError, ValueError) as error:
        raise LoRAError(str(error), path) from error


def _itemsize(key: str, entry: Any, dtype: torch.dtype | None) -> int:
    return _written_dtype(key, entry, dtype).itemsize


def _written_dtype(key: str, entry: Any, dtype: torch.dtype | None) -> torch.dtype:
    return entry.dtype if dtype is None or not entry.dtype.is_floating_point or key.endswith(".alpha") else dtype


def _header(
    order: list[str], entries: Mapping[str, Any], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for key in order:
        kind = _written_dtype(key, entries[key], dtype)
        stop = start + entries[key].shape.numel() * kind.itemsize
        table[key] = {
            "dtype": DTYPE_CODES[kind], "shape": list(entries[key].shape), "data_offsets": [start, stop]
        }  # fmt: skip
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def nonfinite(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Return the names of tensors with NaN or infinite values."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not is_finite(tensor):
            yield name


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, in any floating-point dtype."""
    if not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float16)
    # A NaN anywhere becomes the minimum and the maximum.
    return all(math.isfinite(end.item()) for end in torch.aminmax(tensor))
