"""Loading any LoRA file into a pipeline, ours or diffusers' own, through PEFT."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..._compat import offloading_suspended, restore_linears
from ..errors import LoRAError, naming_files
from ..files import LoRASource
from ..keys import Component
from ..reading.hub import check_hub_arguments
from ..reading.read import LoRAFile, read
from ..reading.scope import find_token_scope
from .clock import drop_unused_clock
from .inject import inject, narrow_x_embedder
from .patches import add_patches, apply_patches, patch_weights, remove_patches
from .plan import adapter_names, check_plans, free_name, plan_loading


logger = logging.getLogger(__name__)

COMPONENTS: tuple[Component, ...] = ("transformer", "text_encoder", "text_encoder_2")


def load_lora(
    pipe: Any,
    source: LoRASource,
    adapter_name: str | None = None,
    weight: float = 1.0,
    *,
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    strict: bool = True,
    default_alpha: float | None = None,
    **hub: Any,
) -> str:
    """Load a LoRA of any layout into a pipeline beside those that are active, diffusers' own pipelines included.

    CLIP and T5 parts, LoKr, LoHa, DoRA on either axis, dense deltas, biases and replaced norms are all applied. The
    pipeline's `set_adapters`, `fuse_lora` and so on work as for any LoRA; on diffusers' own pipelines [`unload_lora`]
    also removes what their `unload_lora_weights` does not know: T5 parts, norms and a widened `x_embedder`.

    Args:
        pipe (`DiffusionPipeline`):
            A FLUX.1 pipeline.
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder, a repository of the Hub, or the tensors.
        adapter_name (`str`, *optional*):
            The adapter's name; `default_0`, `default_1`, ... by default.
        weight (`float`, *optional*, defaults to 1.0):
            The adapter's weight. The weights of other active adapters stay.
        metadata, adapter_config, strict, default_alpha:
            As for [`convert_lora`].
        hub:
            `weight_name`, `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `proxies`,
            `local_files_only`, `use_safetensors` for the Hub.

    Returns:
        `str`: The adapter's name.

    Raises:
        LoRAError: If the file cannot be read, fits no layer of the pipeline, the name is taken, or the weight is not
            finite.
        TypeError: If there are unknown arguments.
    """
    check_hub_arguments(hub)
    with naming_files(source):
        file = read(source, metadata, adapter_config, default_alpha, strict, hub)
        return add_adapter(pipe, file, adapter_name, weight)


def add_adapter(
    pipe: Any,
    file: LoRAFile,
    adapter_name: str | None,
    weight: float = 1.0,
    *,
    beside: bool = True,
    hotswap: bool = False,
    low_cpu_mem_usage: bool = True,
    timed: bool = False,
) -> str:
    """Add a LoRA that has been read: plan it, inject it as PEFT layers and activate it.

    Args:
        pipe (`DiffusionPipeline`): A FLUX.1 pipeline.
        file (`LoRAFile`): The LoRA.
        adapter_name (`str`, *optional*): The adapter's name; `default_0`, `default_1`, ... by default.
        weight (`float`, *optional*, defaults to 1.0): The adapter's weight.
        beside (`bool`, *optional*, defaults to `True`): Whether the adapters that are active stay so.
        hotswap, low_cpu_mem_usage (`bool`): As for diffusers' `load_lora_adapter`.
        timed (`bool`, *optional*, defaults to `False`):
            Whether its updates may depend on the timestep; the caller then connects them.

    Returns:
        `str`: The adapter's name.

    Raises:
        LoRAError: If it fits no layer of the pipeline, the name is taken, or the weight is not a finite number.
    """
    if not isinstance(weight, Real) or not math.isfinite(weight):
        raise LoRAError(f"`{'strength' if timed else 'weight'}` is {weight!r}; expected a finite number.")
    models = lora_models(pipe)
    name = adapter_name or free_name(models.values())
    plans = plan_loading(file, models, timed)
    check_plans(plans, models, name, hotswap)
    if scope := find_token_scope(file.layers.values()):
        logger.warning("%s", scope)
    active = {component: _active_names(model) if beside else [] for component, model in models.items()}
    patched = {component: patch_weights(model) if beside else {} for component, model in models.items()}
    with offloading_suspended(pipe):
        try:
            for component, plan in plans.items():
                inject(models[component], component, plan, name, hotswap, low_cpu_mem_usage)
                add_patches(models[component], name, plan.patches)
        except Exception:
            if not hotswap:
                _remove(pipe, models, [name])
            raise
        for component, model in () if hotswap else models.items():
            _activate(model, [*active[component], name], {name: weight})
            apply_patches(model, {**patched[component], name: weight})
    return name


def lora_models(pipe: Any) -> dict[str, nn.Module]:
    """Return the models of a pipeline that LoRAs update."""
    return {name: model for name in COMPONENTS if isinstance(model := getattr(pipe, name, None), nn.Module)}


# ---- weights and removal ------------------------------------------------------------------------------------------


def tuned_layers(model: nn.Module) -> Iterator[Any]:
    """Return PEFT's layers of a model."""
    return (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))


def _active_names(model: nn.Module) -> list[str]:
    found = (name for layer in tuned_layers(model) if not layer.disable_adapters for name in layer.active_adapters)
    return list(dict.fromkeys(found))


def _activate(model: nn.Module, names: Sequence[str], weights: Mapping[str, float]) -> None:
    """Activate adapters in every layer; weights that are not given stay unchanged."""
    for layer in tuned_layers(model):
        layer.set_adapter([name for name in names if name in layer.lora_A])
        for name, weight in weights.items():
            if name in layer.lora_A:
                layer.set_scale(name, weight)


def active_weights(model: nn.Module) -> dict[str, float]:
    """Return the weights of a model's active adapters.

    Args:
        model (`torch.nn.Module`): The model.

    Returns:
        `dict[str, float]`: Weights by name; where the blocks of a model have different ones, that of its first layer.
    """
    weights = patch_weights(model)
    for layer in tuned_layers(model):
        for name in layer.active_adapters if not layer.disable_adapters else ():
            if name in layer.scaling and layer.lora_alpha[name] and name not in weights:
                weights[name] = layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]
    return weights


def unload_lora(pipe: Any, adapter_name: str | Sequence[str] | None = None) -> None:
    """Remove LoRAs from a pipeline; the weights are as before they were loaded, bit for bit.

    What has been fused stays fused: after `fuse_lora`, removing all LoRAs makes them part of the model.

    Args:
        pipe (`DiffusionPipeline`):
            The pipeline.
        adapter_name (`str` or `Sequence[str]`, *optional*):
            The adapters; all by default.

    Raises:
        LoRAError: If there is no adapter of that name, or if some of several are fused.
    """
    models = lora_models(pipe)
    known = sorted({name for model in models.values() for name in adapter_names(model)})
    names = known if adapter_name is None else [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise LoRAError(f"There are no adapters {unknown}; the pipeline has {known}.")
    fused = {name for model in models.values() for layer in tuned_layers(model) for name in layer.merged_adapters}
    if fused and set(names) != set(known):
        raise LoRAError(f"The adapters {sorted(fused)} are fused. Call `unfuse_lora` before taking out {names} alone.")
    with offloading_suspended(pipe):
        _remove(pipe, models, names, keep_values=bool(fused))


def _remove(pipe: Any, models: Mapping[str, nn.Module], names: Sequence[str], keep_values: bool = False) -> None:
    for model in models.values():
        for name in names:
            remove_patches(model, name, keep_values)
            delete_adapter(model, name)
        drop_unused_clock(model)
        narrow_x_embedder(model)
    if not any(adapter_names(model) for model in models.values()):
        restore_linears(pipe)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Remove PEFT's layers of an adapter; without any adapter the model has its own layers again.

    Args:
        model (`torch.nn.Module`): The model; nothing happens unless it has the adapter.
        name (`str`): The adapter.
    """
    config = getattr(model, "peft_config", {})
    if name not in config:
        return
    for layer in tuned_layers(model):
        if name in layer.r:
            layer.delete_adapter(name)
    del config[name]
    if not config:
        _unwrap(model)


def _unwrap(model: nn.Module) -> None:
    """Restore the model's own layers in place of PEFT's."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False  # type: ignore[assignment]
