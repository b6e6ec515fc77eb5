"""Loading any LoRA file into a pipeline, ours or diffusers' own, through PEFT."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .._compat import fetch_lora_state_dict, offloading_suspended, restore_linears
from .lora_conversion import load_adapter
from .lora_errors import LoRAError
from .lora_files import LoRASource
from .lora_formats import Component
from .lora_injection import inject
from .lora_patches import add_patches, apply_patches, remove_patches
from .lora_planning import adapter_names, check_plans, free_name, plan_loading
from .lora_reading import LoRAAdapter
from .lora_scale import PEFT_HEADER


logger = logging.getLogger(__name__)

COMPONENTS: tuple[Component, ...] = ("transformer", "text_encoder", "text_encoder_2")
_HUB_ARGUMENTS = ("weight_name", "subfolder", "revision", "token", "cache_dir", "force_download", "proxies",
                  "local_files_only", "use_safetensors")  # fmt: skip


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
    name = adapter_name or free_name(models.values())
    plans = plan_loading(adapter, models)
    check_plans(plans, models, name, hotswap)
    with offloading_suspended(pipe):
        for component, plan in plans.items():
            inject(models[component], component, plan, name, hotswap, low_cpu_mem_usage)
            add_patches(models[component], name, plan.patches)
            apply_patches(models[component], {name: 1.0})
    return name


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
