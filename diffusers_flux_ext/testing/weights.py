"""Seeded, non-degenerate weights: no parameter keeps a zero or one that would hide a mistake."""

import zlib

import torch
from torch import nn


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A generator that depends on `(seed, name)` only, not on the order in which parameters are visited."""
    return torch.Generator("cpu").manual_seed((zlib.crc32(name.encode()) ^ (seed * 2654435761)) & 0x7FFFFFFF)


def _value(name: str, parameter: torch.Tensor, is_table: bool, seed: int) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=seeded_generator(seed, name), dtype=torch.float32)
    if name.endswith("bias"):
        return 0.1 * noise
    if parameter.ndim == 1:
        return 1.0 + 0.2 * noise
    return 0.5 * noise if is_table else noise / parameter[0].numel() ** 0.5


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Gives every parameter of `module` a seeded value, in place; returns the module frozen and in eval mode."""
    tables = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_value(name, parameter, name in tables, seed).to(parameter.dtype))
    return module.eval().requires_grad_(False)
