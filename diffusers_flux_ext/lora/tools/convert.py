"""Converting LoRA files: state dict -> {module: update} -> state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import naming_files
from ..files import LoRASource, check_writable, materialize, save_lora
from ..layouts import lora_layout
from ..reading.read import read
from ..writing.write import write_lora


def convert_lora(
    source: LoRASource,
    to: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    *,
    default_alpha: float | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Convert a FLUX.1 LoRA between the layouts of all trainers, without loss.

    For every layer `delta W = alpha / rank * up @ down` stays the same. Fused layers are split by rows and split ones
    joined in blocks, so no rank grows where the parts share `down`; joined layers are split again at their old rank.
    Tensors keep their dtype, unless a scale has to be multiplied into one that cannot hold the product exactly; that
    one becomes float32. LyCORIS' products (LoKr, LoHa) and dense updates become LoRAs where the target supports only
    those.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a pickle of tensors, a folder with one of them, or the tensors. They are not changed.
        to (`str`, *optional*, defaults to `"diffusers"`):
            `"diffusers"`, `"kohya"`, `"bfl"` (ComfyUI's dotted names), `"diffsynth"`, `"onetrainer"` or `"xlabs"`,
            which holds attention only.
        metadata (`Mapping[str, str]`, *optional*):
            A header that replaces the file's, such as that of a file whose tensors are given.
        adapter_config (`Mapping[str, Any]`, *optional*):
            The content of PEFT's `adapter_config.json`; the one beside a file is found.
        strict (`bool`, *optional*, defaults to `True`):
            Whether keys that are not understood, parts that the target cannot hold and numbers that are not finite are
            errors; else the former are left out, with a warning.
        default_alpha (`float`, *optional*):
            Alpha of layers for which neither the file nor a config gives one; their scale is 1 without it.
        dtype (`torch.dtype`, *optional*):
            A dtype that all factors are cast to, with its rounding.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, str]]`: The tensors, each with its own memory, and the header.

    Raises:
        ForeignLoRAError: If it is a LoRA for another model, or not a static update of weights.
        UnknownLoRAKeysError: If there are keys that no layout has.
        UnsupportedLoRAError: If the target cannot hold a part.
        LoRAError: If the file is broken, incomplete, or contradicts itself or its metadata.
    """
    layout = lora_layout(to)
    with naming_files(source):
        entries, header = write_lora(read(source, metadata, adapter_config, default_alpha, strict), layout, strict)
        return materialize(entries, dtype), header


def convert_lora_file(
    source: LoRASource,
    target: str | os.PathLike[str],
    to: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    *,
    default_alpha: float | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Convert a LoRA to a file, holding one layer at a time in memory.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            As for [`convert_lora`].
        target (`str` or `os.PathLike`):
            The safetensors file to write. It appears when it is complete.
        to, metadata, adapter_config, strict, default_alpha, dtype:
            As for [`convert_lora`].
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether an existing file may be replaced.

    Raises:
        LoRAError: As for [`convert_lora`], and if the file exists or cannot be written.
    """
    layout = lora_layout(to)
    check_writable(target, overwrite)
    with naming_files(source):
        entries, header = write_lora(read(source, metadata, adapter_config, default_alpha, strict), layout, strict)
        save_lora(target, entries, header, overwrite, dtype)
