"""Loading any LoRA file into a pipeline, ours or diffusers' own, through PEFT."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .._compat import expand_linears, fetch_lora_state_dict, offloading_suspended, restore_linears
from .checkpoint_formats import list_keys
from .lora_conversion import load_adapter
from .lora_errors import LoRAError
from .lora_files import LoRASource
from .lora_formats import Component
from .lora_layers import LayerUpdate, dynamic_kind
from .lora_patches import Patch, add_patches, apply_patches, patched_adapters, remove_patches
from .lora_products import to_lora
from .lora_reading import LoRAAdapter
from .lora_scale import PEFT_HEADER
from .lora_variants import DeltaVariant, make_delta, needs_variant


logger = logging.getLogger(__name__)

COMPONENTS: tuple[Component, ...] = ("transformer", "text_encoder", "text_encoder_2")
_HUB_ARGUMENTS = ("weight_name", "subfolder", "revision", "token", "cache_dir", "force_download", "proxies",
                  "local_files_only", "use_safetensors")  # fmt: skip
_PATCH_PARTS = {"set": True, "set_weight": True, "diff": False, "w_norm": False, "diff_b": False, "b_norm": False}


@dataclass
class _Plan:
    """What an adapter does to one model."""

    updates: dict[str, LayerUpdate] = field(default_factory=dict)
    patches: list[Patch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_source(source: Any, metadata: Any, adapter_config: Any, strict: bool, **hub: Any) -> LoRAAdapter:
    """
    Reads a LoRA from a dict, a file, a folder, or a repository of the Hub.

    Raises:
        LoRAError: If it cannot be read.
    """
    local = source
    if isinstance(source, str | Path) and hub.get("weight_name") and Path(source).is_dir():
        local = Path(source) / (hub.get("subfolder") or "") / hub["weight_name"]
    elif isinstance(source, str) and not Path(source).exists() and _is_repository(source):
        local, found = fetch_lora_state_dict(source, **hub)
        metadata = _header_of(found) if metadata is None else metadata
    return load_adapter(local, metadata, adapter_config, strict=strict)[0]


def _is_repository(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not source.startswith(".")


def _header_of(found: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if not found else {PEFT_HEADER: json.dumps(dict(found))}


def load_lora(
    pipe: Any,
    source: LoRASource,
    adapter_name: str | None = None,
    weight: float = 1.0,
    *,
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    **hub: Any,
) -> str:
    """
    Loads a LoRA of any layout into a pipeline beside those that are active, diffusers' own pipelines included.

    CLIP and T5 parts, LoKr, LoHa, DoRA on either axis, dense deltas, biases and replaced norms are all applied. The
    pipeline's `set_adapters`, `fuse_lora` and so on work as for any LoRA; on diffusers' own pipelines [`unload_lora`]
    also takes away what their `unload_lora_weights` does not know: T5 parts, norms and a widened `x_embedder`.

    Args:
        pipe (`DiffusionPipeline`):
            A FLUX.1 pipeline.
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder, a repository of the Hub, or the tensors.
        adapter_name (`str`, *optional*):
            The adapter's name; `default_0`, `default_1`, ... without.
        weight (`float`, *optional*, defaults to 1.0):
            The adapter's weight. The weights of other active adapters stay.
        metadata, adapter_config, strict:
            As for [`convert_lora`].
        hub:
            `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `proxies`,
            `local_files_only`, `use_safetensors` for the Hub.

    Returns:
        `str`: The adapter's name.

    Raises:
        LoRAError: If the file cannot be read, fits no layer of the pipeline, or the name is taken.
        TypeError: If there are unknown arguments.
    """
    before = active_weights(pipe)
    name = load_into(
        pipe, source, adapter_name, metadata=metadata, adapter_config=adapter_config, strict=strict, **hub
    )
    set_weights(pipe, {**before, name: weight})
    return name


def load_into(
    pipe: Any,
    source: LoRASource,
    adapter_name: str | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    hotswap: bool = False,
    low_cpu_mem_usage: bool = True,
    **hub: Any,
) -> str:
    """
    Loads a LoRA as diffusers' `load_lora_weights` does: it becomes the only active adapter. See [`load_lora`].
    """
    if not hub.keys() <= set(_HUB_ARGUMENTS):
        raise TypeError(f"Unknown arguments {sorted(hub.keys() - set(_HUB_ARGUMENTS))}; known are {_HUB_ARGUMENTS}.")
    adapter = read_source(source, metadata, adapter_config, strict, **hub)
    models: dict[str, nn.Module] = {
        name: model for name in COMPONENTS if isinstance(model := getattr(pipe, name, None), nn.Module)
    }
    name = adapter_name or _free_name(models.values())
    plans = _plan(adapter, models)
    _check(plans, models, name, hotswap)
    with offloading_suspended(pipe):
        for component, plan in plans.items():
            _inject(models[component], component, plan, name, hotswap, low_cpu_mem_usage)
            add_patches(models[component], name, plan.patches)
            apply_patches(models[component], {name: 1.0})
    return name


# ---- what goes where ----------------------------------------------------------------------------------------------


def _plan(adapter: LoRAAdapter, models: Mapping[str, nn.Module]) -> dict[str, _Plan]:
    plans = {component: _Plan() for component in models}
    absent: Counter[str] = Counter()
    layers = {component: dict(model.named_modules()) for component, model in models.items()}
    for target, update in adapter.updates():
        component, _, name = target.partition(".")
        if component not in models:
            absent[component] += 1
            continue
        name = _live_name(name, layers[component])
        plan, layer = plans[component], layers[component].get(name)
        if layer is None:
            plan.missing.append(name)
        elif isinstance(layer, nn.Linear | BaseTunerLayer) or _is_linear(layer):
            _add_update(plan, name, update, layer)
        else:
            plan.patches.extend(_patches(name, update))
    for component, count in absent.items():
        logger.warning("%d layers of the LoRA belong to `%s`, which the pipeline does not have.", count, component)
    _report_missing(plans)
    return {component: plan for component, plan in plans.items() if plan.updates or plan.patches}


def _live_name(name: str, layers: Mapping[str, nn.Module]) -> str:
    """The name as the loaded model has it: transformers 5 dropped CLIP's level `text_model.`."""
    if name in layers:
        return name
    other = name.removeprefix("text_model.") if name.startswith("text_model.") else f"text_model.{name}"
    return other if other in layers else name


def _linear_size(layer: Any) -> tuple[int, int]:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return base.out_features, base.in_features


def _is_linear(layer: nn.Module) -> bool:
    # Quantised layers are no `nn.Linear` but have its sizes.
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _add_update(plan: _Plan, name: str, update: LayerUpdate, layer: nn.Module) -> None:
    dynamic = dynamic_kind(update)
    if dynamic is not None:
        raise LoRAError(f"`{name}` is {dynamic}; it cannot be loaded as a LoRA.")
    outputs, inputs = _linear_size(layer)
    if update.kind == "none":
        bias = {n: p for n, p in update.parts.items() if n in ("bias", "diff_b")}
        zeros = {"down": torch.zeros(1, inputs), "up": torch.zeros(outputs, 1)}
        update = LayerUpdate({**zeros, **bias}, update.scale)
    if update.out_features != outputs or update.in_features != inputs and name != "x_embedder":
        raise LoRAError(
            f"The LoRA updates `{name}` with a matrix of shape {(update.out_features, update.in_features)}; the "
            f"model's is {(outputs, inputs)}. It was trained on a model of another size."
        )
    plan.updates[name] = update


def _patches(name: str, update: LayerUpdate) -> Iterator[Patch]:
    for part, value in update.parts.items():
        if part not in _PATCH_PARTS:
            raise LoRAError(f"`{name}` is no Linear, and the LoRA has {sorted(update.parts)} for it.")
        which = "bias" if part in ("diff_b", "b_norm") else "weight"
        yield Patch(f"{name}.{which}", value, _PATCH_PARTS[part])


def _report_missing(plans: Mapping[str, _Plan]) -> None:
    missing = [f"{component}.{name}" for component, plan in plans.items() for name in plan.missing]
    if not missing:
        return
    found = sum(len(plan.updates) + len(plan.patches) for plan in plans.values())
    if not found:
        raise LoRAError(f"The pipeline has none of the layers of this LoRA: {list_keys(missing)}.")
    logger.warning(
        "The pipeline does not have %d of the %d layers of this LoRA, they are left out: %s.",
        len(missing), found + len(missing), list_keys(missing),
    )  # fmt: skip


def _check(plans: Mapping[str, _Plan], models: Mapping[str, nn.Module], name: str, hotswap: bool) -> None:
    if not plans:
        raise LoRAError("The LoRA updates no layer of this pipeline.")
    if not name or "." in name:
        raise LoRAError(f"The adapter's name is {name!r}; expected a word without a dot.")
    taken = [component for component, model in models.items() if name in adapter_names(model)]
    if taken and not hotswap:
        raise LoRAError(f"There already is an adapter {name!r} in {taken}. Delete it, or choose another name.")
    if hotswap and (set(plans) != {"transformer"} or plans["transformer"].patches or _special(plans["transformer"])):
        raise LoRAError(
            "Only LoRAs of the transformer can be swapped in place: no text encoders, norms, DoRA or LoKr."
        )


def _special(plan: _Plan) -> dict[str, LayerUpdate]:
    return {name: update for name, update in plan.updates.items() if needs_variant(update)}


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters of a model."""
    return list(dict.fromkeys([*getattr(model, "peft_config", {}), *patched_adapters(model)]))


def _free_name(models: Any) -> str:
    taken = {name for model in models for name in adapter_names(model)}
    return next(name for number in range(len(taken) + 1) if (name := f"default_{number}") not in taken)


# ---- PEFT ---------------------------------------------------------------------------------------------------------


def _inject(model: nn.Module, component: str, plan: _Plan, name: str, hotswap: bool, low_cpu_mem_usage: bool) -> None:
    if not plan.updates:
        return
    dtype = _computing_dtype(model)
    special = _special(plan)
    pairs = {layer: to_lora(update) for layer, update in plan.updates.items() if layer not in special}
    with_bias = any({"bias", "diff_b"} & update.parts.keys() for update in plan.updates.values())
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
        layers[layer].lora_B[name] = make_delta(update, placeholder.dtype, with_bias).to(placeholder.device)
        layers[layer].lora_variant[name] = DeltaVariant()


def _restore_dtypes(layers: Mapping[str, Any], state_dict: Mapping[str, Tensor], name: str) -> None:
    """PEFT casts factors to the dtype of the layer; where that is one of 8 bits, nothing can be computed in it."""
    for key, value in state_dict.items():
        layer, side, which = key.rsplit(".", 2)
        factor = getattr(layers[layer], side)[name]
        if getattr(factor, which).dtype.itemsize == 1:
            setattr(factor, which, nn.Parameter(value.to(getattr(factor, which).device), requires_grad=False))


def _computing_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of a model's weights, leaving out those that are stored in 8 bits."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1), None)
    return own or torch.bfloat16


def _usable(factor: Tensor, fallback: torch.dtype) -> Tensor:
    """A factor in its own dtype, or in `fallback` if that is one of 8 bits, in which nothing can be computed."""
    usable = factor.is_floating_point() and factor.dtype.itemsize > 1
    return factor if usable else factor.to(fallback)


def _peft_state(
    model: nn.Module,
    pairs: Mapping[str, LayerUpdate],
    special: Mapping[str, LayerUpdate],
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
        # A list would match by ends of names, a pattern matches whole ones.
        "target_modules": "|".join(re.escape(layer) for layer in ranks),
        "lora_bias": with_bias,
    }
    return state, config


def _fit_x_embedder(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Widens the model for a control LoRA, or the LoRA for a widened model; new columns are zeros."""
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


# ---- weights and removal ------------------------------------------------------------------------------------------


def _tuned_layers(model: nn.Module) -> Iterator[Any]:
    return (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def active_weights(pipe: Any) -> dict[str, float]:
    """
    The weights of a pipeline's active adapters.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline.

    Returns:
        `dict[str, float]`: Weights by name.
    """
    weights: dict[str, float] = {}
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        for layer in _tuned_layers(model) if isinstance(model, nn.Module) else ():
            for name in layer.active_adapters if not layer.disable_adapters else ():
                if name not in weights and name in layer.scaling and layer.lora_alpha[name]:
                    weights[name] = layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]
    return weights


def set_weights(pipe: Any, weights: Mapping[str, float]) -> None:
    """
    Makes adapters the active ones, with weights.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline.
        weights (`Mapping[str, float]`):
            Weights by name.
    """
    for component in COMPONENTS:
        model = getattr(pipe, component, None)
        if not isinstance(model, nn.Module):
            continue
        for layer in _tuned_layers(model):
            layer.set_adapter([name for name in weights if name in layer.lora_A])
            for name, weight in weights.items():
                if name in layer.lora_A:
                    layer.set_scale(name, weight)
        apply_patches(model, weights)


def unload_lora(pipe: Any, adapter_name: str | Sequence[str] | None = None) -> None:
    """
    Takes LoRAs out of a pipeline; the weights are as before they were loaded, to the bit.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline.
        adapter_name (`str` or `Sequence[str]`, *optional*):
            The adapters; all by default.

    Raises:
        LoRAError: If there is no adapter of that name.
    """
    present = {component: adapter_names(model) for component in COMPONENTS
               if isinstance(model := getattr(pipe, component, None), nn.Module)}  # fmt: skip
    known = sorted({name for found in present.values() for name in found})
    names = known if adapter_name is None else [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise LoRAError(f"There are no adapters {unknown}; the pipeline has {known}.")
    with offloading_suspended(pipe):
        for component, found in present.items():
            model = getattr(pipe, component)
            for name in (name for name in names if name in found):
                _delete(model, name)
        if not any(adapter_names(getattr(pipe, component)) for component in present):
            restore_linears(pipe)


def _delete(model: nn.Module, name: str) -> None:
    remove_patches(model, name)
    config = getattr(model, "peft_config", {})
    if name not in config:
        return
    for layer in _tuned_layers(model):
        if name in layer.lora_A:
            layer.delete_adapter(name)
    del config[name]
    if not config:
        _unwrap(model)


def _unwrap(model: nn.Module) -> None:
    """Puts the model's own layers back in the place of PEFT's."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False  # type: ignore[assignment]
