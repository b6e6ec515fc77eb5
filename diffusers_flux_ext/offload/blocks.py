"""The parts that a module's weights are placed in: its blocks, and the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

import torch
from diffusers import AutoencoderKL
from torch import nn

from ..checkpoints.packed_weights import stored_bytes


# What diffusers casts and offloads leaf by leaf.
LEAVES: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LEAVES += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Embedding)
# LoRA keeps its precision, and T5 looks at the type of `wo` to choose that of its input.
KEPT_PRECISE = ("lora_", r"(^|\.)wo$", "pos_embed", "patch_embed")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def find_blocks(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Find the blocks of a module: the items of its outermost `nn.ModuleList`s.

    Args:
        module (`torch.nn.Module`): A model.
        prefix (`str`, *optional*): Its own path.

    Returns:
        `dict[str, torch.nn.Module]`: Blocks by path, in their order.
    """
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            found[path] = child
        else:
            found |= find_blocks(child, f"{path}.")
    return found


def streamable_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Find the blocks that may come to the card one by one.

    Args:
        module (`torch.nn.Module`):
            A model. An autoencoder counts as one piece, since its convolutions are small. So does a model with
            `streams_blocks = False`, whose blocks do not run as a whole.

    Returns:
        `dict[str, torch.nn.Module]`: Blocks with weights by path.
    """
    if isinstance(module, AutoencoderKL) or not getattr(module, "streams_blocks", True):
        return {}
    return {path: block for path, block in find_blocks(module).items() if any(True for _ in block.parameters())}


def rest_tensors(module: nn.Module) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """Return the parameters and buffers of a module outside its blocks."""
    blocks = streamable_blocks(module).values()
    inside = {id(tensor) for block in blocks for tensor in chain(block.parameters(), block.buffers())}
    parameters = [each for each in module.parameters() if id(each) not in inside]
    return parameters, [each for each in module.buffers() if id(each) not in inside]


def tensor_bytes(module: nn.Module, storage_dtype: torch.dtype | None = None) -> int:
    """Count the bytes of a module's weights and buffers.

    Args:
        module (`torch.nn.Module`): A module.
        storage_dtype (`torch.dtype`, *optional*): What its castable weights will be stored in.

    Returns:
        `int`
    """
    cast = set() if storage_dtype is None else castable_weights(module)
    return sum(
        each.numel() * storage_dtype.itemsize if storage_dtype and id(each) in cast else stored_bytes(each)
        for each in chain(module.parameters(), module.buffers())
    )


def rest_bytes(module: nn.Module) -> int:
    """Count the bytes outside the blocks."""
    return sum(map(stored_bytes, chain(*rest_tensors(module))))


def castable_leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Return the layers whose weights may be stored in fewer bits: all of diffusers' kinds except [`KEPT_PRECISE`].

    Unlike diffusers' own default, the modulation of the norms is among them: a quarter of FLUX.1's weights.
    """
    for name, leaf in module.named_modules():
        if isinstance(leaf, LEAVES) and not any(re.search(pattern, name) for pattern in KEPT_PRECISE):
            yield leaf


def castable_weights(module: nn.Module) -> set[int]:
    """Return the identities of the parameters of [`castable_leaves`]."""
    return {id(weight) for leaf in castable_leaves(module) for weight in leaf.parameters(recurse=False)}


def leaf_bytes(module: nn.Module, storage_dtype: torch.dtype | None = None) -> list[int]:
    """Count the bytes of each layer with weights of its own, in the order of the module's definition."""
    sizes = []
    castable = {id(leaf) for leaf in castable_leaves(module)} if storage_dtype else set()
    for leaf in module.modules():
        own = [*leaf.parameters(recurse=False), *leaf.buffers(recurse=False)]
        if own:
            stored = storage_dtype.itemsize if storage_dtype and id(leaf) in castable else None
            sizes.append(sum(each.numel() * stored if stored else stored_bytes(each) for each in own))
    return sizes


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that a module computes in: that of its weights, except for those stored in fp8."""
    dtypes = [each.dtype for each in module.parameters() if each.is_floating_point() and each.dtype not in FP8]
    return max(set(dtypes), key=dtypes.count) if dtypes else torch.float32
