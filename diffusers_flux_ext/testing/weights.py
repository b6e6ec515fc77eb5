"""Seeded, non-degenerate weights: no parameter keeps a zero or one that would hide a mistake."""

import zlib
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn


M = TypeVar("M", bound=nn.Module)


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """Make a CPU generator that depends on `(seed, name)` alone, not on the order in which parameters are visited."""
    return torch.Generator("cpu").manual_seed((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0x7FFFFFFF)


def _make_value(name: str, shape: torch.Size, is_table: bool, seed: int) -> torch.Tensor:
    noise = torch.randn(shape, generator=seeded_generator(seed, name), dtype=torch.float32)
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1.0 + 0.2 * noise
    return 0.5 * noise if is_table else noise / shape[1:].numel() ** 0.5


# A run of tests makes the same tiny models thousands of times.
_kept_value = lru_cache(maxsize=4096)(_make_value)
_LARGEST_KEPT = 4096


def _value(name: str, shape: torch.Size, is_table: bool, seed: int) -> torch.Tensor:
    make = _kept_value if shape.numel() <= _LARGEST_KEPT else _make_value
    return make(name, shape, is_table, seed)


def randomise(module: M, seed: int) -> M:
    """Give every parameter of a module a seeded value, in place.

    Matrices keep the scale of their inputs, biases and norms get small deviations from zero and one. Buffers stay.

    Args:
        module (`nn.Module`):
            A module on the CPU, of any data type.
        seed (`int`):
            Another seed gives other weights.

    Returns:
        `nn.Module`: The module, frozen and in eval mode.
    """
    tables = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_value(name, parameter.shape, name in tables, seed))
    return module.eval().requires_grad_(False)
