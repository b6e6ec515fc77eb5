"""Layers whose weights stay as a GGUF file packs them, in models that diffusers does not load from single files."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from torch import nn

from .._compat import replace_with_gguf_linears
from .tensors import Tensors


def keep_packed(model: nn.Module, tensors: Tensors, config: Any) -> frozenset[str]:
    """Replace the linear layers of a model whose weights are packed, for [`fill_packed`] to fill.

    Args:
        model (`nn.Module`): The model, on the meta device.
        tensors ([`Tensors`]): The tensors of a file under the model's keys.
        config (`diffusers.GGUFQuantizationConfig`): Gives the data type of the computation.

    Returns:
        `frozenset[str]`: the keys of the weights that stay packed.

    Raises:
        ValueError: If the config is another one, or nothing is packed.
    """
    if not isinstance(config, GGUFQuantizationConfig):
        raise ValueError(
            f"`quantization_config` is a {type(config).__name__}; expected `GGUFQuantizationConfig`. To quantise a "
            "text encoder otherwise, save it by `save_pretrained` and load it by `from_pretrained`."
        )
    linears = {f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    packed = {key: tensors.read(key) for key in tensors.shapes if key in linears}
    packed = {key: weight for key, weight in packed.items() if hasattr(weight, "quant_type")}
    if not packed:
        raise ValueError("`quantization_config` is for GGUF files with packed weights, and this file has none.")
    replace_with_gguf_linears(model, config.compute_dtype, packed)
    return frozenset(packed)


def fill_packed(model: nn.Module, tensors: Tensors, keys: frozenset[str], device: str | torch.device | None) -> None:
    """Give a model the weights that stay packed.

    Args:
        model (`nn.Module`): The model that [`keep_packed`] prepared.
        tensors ([`Tensors`]): The tensors of a file under the model's keys.
        keys (`frozenset[str]`): What [`keep_packed`] returned.
        device (`str` or `torch.device`, *optional*): Device of the weights; CPU by default.
    """
    for key in keys:
        path, _, name = key.rpartition(".")
        packed: Any = tensors.read(key).to(device=device or "cpu", copy=True)
        # T5 casts what goes into some layers to the data type of their weights, unless these are 8-bit integers.
        as_integers = type(packed)(packed.as_tensor().view(torch.int8), quant_type=packed.quant_type)
        model.get_submodule(path)._parameters[name] = as_integers
