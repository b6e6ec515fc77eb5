"""GGUF files: recognising and reading them, and the tensors that their packed weights represent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .._compat import dequantize_gguf_tensor, load_gguf_checkpoint


GGUF_MAGIC = b"GGUF"


def is_gguf(source: Any) -> bool:
    """Whether a source is a GGUF file, by its first bytes."""
    if isinstance(source, Mapping) or not Path(source).is_file():
        return False
    with Path(source).open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def logical_shape(weight: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of the matrix that a tensor represents; GGUF stores each row as bytes."""
    return tuple(getattr(weight, "quant_shape", weight.shape))


def read_gguf(source: str | Path) -> Mapping[str, torch.Tensor]:
    """Read a GGUF file into memory; its weights stay packed.

    Args:
        source (`str` or `Path`): A local file.

    Returns:
        `Mapping[str, torch.Tensor]`: The tensors by key.

    Raises:
        ImportError: If the package `gguf` is not installed.
        ValueError: If the file is broken, or holds a kind of quantisation that diffusers does not compute with.
    """
    try:
        return load_gguf_checkpoint(str(source))
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"`{source}` is not an intact GGUF file: {error}") from error


def dequantised(weight: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the tensor that a packed one represents; any other one is returned as it is.

    Args:
        weight (`torch.Tensor`): A tensor of a GGUF file.
        dtype (`torch.dtype`, *optional*): Data type of the result; that of the format by default.
    """
    if not hasattr(weight, "quant_type"):
        return weight
    unpacked = dequantize_gguf_tensor(weight)
    return unpacked if dtype is None else unpacked.to(dtype)
