"""Updates of a model's layers as PEFT layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..._compat import expand_linears
from ...checkpoints.packed_weights import TORCHAO, packed_layers
from ..errors import LoRAError
from ..updates import Update
from .deltas import DeltaVariant
from .plan import ModelPlan


def inject(
    model: nn.Module, component: str, plan: ModelPlan, name: str, hotswap: bool, low_cpu_mem_usage: bool
) -> None:
    """Add a model's updates as PEFT layers.

    Args:
        model (`torch.nn.Module`): The model.
        component (`str`): Which it is in its pipeline.
        plan (`ModelPlan`): The updates of its layers.
        name (`str`): The adapter's name.
        hotswap, low_cpu_mem_usage (`bool`): As for diffusers' `load_lora_adapter`.

    Raises:
        LoRAError: If `x_embedder` has to be widened and cannot be.
    """
    if not plan.updates:
        return
    dtype = _computing_dtype(model)
    special = plan.special
    pairs = {layer: update.to_lora() for layer, update in plan.updates.items() if layer not in special}
    with_bias = any({"bias", "diff_b"} & update.parts.keys() for update in plan.updates.values())
    if with_bias:
        _check_biases(model, plan)
    state_dict, config = _peft_state(model, pairs, special, with_bias, dtype)
    if component == "transformer":
        state_dict = _fit_x_embedder(model, state_dict)
        model.load_lora_adapter(  # type: ignore[operator]
            state_dict, prefix=None, adapter_name=name, metadata=config, hotswap=hotswap,
            low_cpu_mem_usage=low_cpu_mem_usage,
        )  # fmt: skip
    else:
        inject_adapter_in_model(LoraConfig(**config), model, name, state_dict=state_dict)
        set_peft_model_state_dict(model, state_dict, name)
        model._hf_peft_config_loaded = True  # type: ignore[assignment]
    layers: dict[str, Any] = dict(model.named_modules())
    _restore_dtypes(layers, state_dict, name)
    for layer, update in special.items():
        placeholder = layers[layer].lora_B[name].weight
        layers[layer].lora_B[name] = update.module(placeholder.dtype, with_bias).to(placeholder.device)
        layers[layer].lora_B[name].prepare(layers[layer].get_base_layer())
        layers[layer].lora_variant[name] = DeltaVariant()


def _check_biases(model: nn.Module, plan: ModelPlan) -> None:
    """Refuse what PEFT has no layers for, before it replaces any."""
    layers = [layer for layer, packing in packed_layers(model).items() if packing == TORCHAO]
    found = [layer for layer in layers if layer.removesuffix(".base_layer") in plan.updates]
    if found:
        raise LoRAError(
            f"This LoRA changes biases, and PEFT has no layers with biases for weights that torchao quantised, such "
            f"as those of `{found[0]}`. Use it with weights that are not quantised, or quantised as GGUF; or fuse it "
            "into the unquantised file by `fuse_lora_into` first, and quantise the result."
        )


def _restore_dtypes(layers: Mapping[str, Any], state_dict: Mapping[str, Tensor], name: str) -> None:
    """Undo PEFT's cast of factors to the dtype of the layer where that has 8 bits, which cannot compute."""
    for key, value in state_dict.items():
        layer, side, which = key.rsplit(".", 2)
        factor = getattr(layers[layer], side)[name]
        if getattr(factor, which).dtype.itemsize == 1:
            setattr(factor, which, nn.Parameter(value.to(getattr(factor, which).device), requires_grad=False))


def _computing_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's weights, leaving out those that are stored in 8 bits."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1), None)
    return own or torch.bfloat16


def _usable(factor: Tensor, fallback: torch.dtype) -> Tensor:
    """Return a factor in its own dtype, or in `fallback` if that has 8 bits, which cannot compute."""
    usable = factor.is_floating_point() and factor.dtype.itemsize > 1
    return factor if usable else factor.to(fallback)


def _peft_state(
    model: nn.Module,
    pairs: Mapping[str, Update],
    special: Mapping[str, Update],
    with_bias: bool,
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state: dict[str, Tensor] = {}
    for layer, update in pairs.items():
        for part, suffix in (("down", "lora_A.weight"), ("up", "lora_B.weight"), ("bias", "lora_B.bias")):
            if part in update.parts:
                value = _usable(update.parts[part], dtype)
                state[f"{layer}.{suffix}"] = value.clone(memory_format=torch.contiguous_format)
            elif part == "bias" and with_bias:
                state[f"{layer}.{suffix}"] = torch.zeros(
                    update.out_features, dtype=_usable(update.parts["up"], dtype).dtype
                )
    for layer, update in special.items():
        kind = _usable(next(iter(update.parts.values())), dtype).dtype
        state[f"{layer}.lora_A.weight"] = torch.zeros(1, update.in_features or 1, dtype=kind)
        state[f"{layer}.lora_B.weight"] = torch.zeros(update.out_features, 1, dtype=kind)
        if with_bias:
            state[f"{layer}.lora_B.bias"] = torch.zeros(update.out_features, dtype=kind)
    ranks = {layer: update.rank or 1 for layer, update in pairs.items()} | dict.fromkeys(special, 1)
    alphas = {layer: update.scale * ranks[layer] for layer, update in pairs.items()} | dict.fromkeys(special, 1.0)
    rank, alpha = (Counter(table.values()).most_common(1)[0][0] for table in (ranks, alphas))
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(layer)}": value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(layer)}": value for layer, value in alphas.items() if value != alpha},
        # A list would match the ends of names; a pattern matches whole names.
        "target_modules": "|".join(re.escape(layer) for layer in ranks),
        "lora_bias": with_bias,
    }
    return state, config


def _fit_x_embedder(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Widen the model for a control LoRA, or the LoRA for a widened model; new columns are zeros."""
    key = "x_embedder.lora_A.weight"
    if key not in state_dict:
        return state_dict
    layer: Any = model.x_embedder
    width = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer).in_features
    down = state_dict[key]
    if down.shape[1] > width:
        if isinstance(layer, BaseTunerLayer):
            raise LoRAError(
                f"This control LoRA takes {down.shape[1]} channels and widens `x_embedder`, which another adapter "
                "updates already. Load the control LoRA first."
            )
        expand_linears(model, {f"transformer.{name}": value for name, value in state_dict.items()})
    elif down.shape[1] < width:
        state_dict[key] = torch.cat([down, down.new_zeros(down.shape[0], width - down.shape[1])], dim=1)
    return state_dict


def narrow_x_embedder(model: nn.Module) -> None:
    """Restore the width and weights of `x_embedder` once no LoRA reads the control channels.

    Args:
        model (`torch.nn.Module`): The model; nothing happens unless [`inject`] has widened it.
    """
    replaced = getattr(model, "_overwritten_params", None) or {}
    layer: Any = getattr(model, "x_embedder", None)
    if replaced.keys() - {"x_embedder.bias"} != {"x_embedder.weight"}:
        return
    old = replaced["x_embedder.weight"]
    width, downs = old.shape[1], list(layer.lora_A.values()) if isinstance(layer, BaseTunerLayer) else []
    variants = getattr(layer, "lora_variant", {})
    if any(down.weight[:, width:].any() for down in downs) or any(name in layer.lora_A for name in variants):
        return
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    base.weight = nn.Parameter(old.to(base.weight), requires_grad=base.weight.requires_grad)
    for down in downs:
        down.weight = nn.Parameter(down.weight[:, :width].contiguous(), requires_grad=down.weight.requires_grad)
    for part in (base, layer, *downs):
        part.in_features = width
    model.config.in_channels = width  # type: ignore[union-attr]
    model._overwritten_params = None  # type: ignore[assignment]
