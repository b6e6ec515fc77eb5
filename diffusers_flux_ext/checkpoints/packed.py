"""Layers whose weights stay as a GGUF file packs them, in models that diffusers does not load from single files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from torch import nn

from .._compat import replace_with_gguf_linears
from .layouts import TensorRecipe
from .pretrained import planned_model, tie
from .tensors import Tensors, fill_from


def load_packed_model(
    model_class: Any,
    config: Any,
    plan: Mapping[str, TensorRecipe],
    tensors: Tensors,
    quantization_config: Any,
    *,
    tied: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Make a model of transformers from a GGUF file, whose packed matrices stay as they are.

    Args:
        model_class (`type`): See [`planned_model`].
        config (`PretrainedConfig`): See [`planned_model`].
        plan (`Mapping[str, TensorRecipe]`): See [`planned_model`].
        tensors ([`Tensors`]): Those of the file.
        quantization_config (`diffusers.GGUFQuantizationConfig`): Gives the data type of the computation.
        tied (`Mapping[str, str]`, *optional*): See [`planned_model`].
        dtype (`torch.dtype`, *optional*): Data type of what is not packed; that of the computation by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if tensors are missing, surplus or of another shape; if the config is another one, or nothing is
            packed.
    """
    model, made = planned_model(model_class, config, plan, tensors, tied=tied)
    keys = keep_packed(model, made, quantization_config)
    fill_from(model, made, dtype or quantization_config.compute_dtype, device, keys)
    fill_packed(model, made, keys, device)
    tie(model, tied or {})
    return model


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
