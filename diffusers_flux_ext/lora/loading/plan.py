"""What a LoRA does to the models of a pipeline: the layers it updates, and those it cannot find."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...checkpoints.layouts import list_keys
from ..errors import LoRAError
from ..reading.read import LoRAFile
from ..updates import Bias, LoRA, Timed, Update
from .patches import Patch, patched_adapters


logger = logging.getLogger(__name__)

_PATCH_PARTS = {"set": True, "set_weight": True, "diff": False, "w_norm": False, "diff_b": False, "b_norm": False}


@dataclass
class ModelPlan:
    """What an adapter does to one model."""

    updates: dict[str, Update] = field(default_factory=dict)
    patches: list[Patch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def special(self) -> dict[str, Update]:
        """The updates that are not plain LoRAs."""
        return {name: update for name, update in self.updates.items() if not update.is_plain}


def plan_loading(adapter: LoRAFile, models: Mapping[str, nn.Module], timed: bool = False) -> dict[str, ModelPlan]:
    """Find the layers of an adapter in models. Layers that no model has are reported in a warning.

    Args:
        adapter (`LoRAFile`): The adapter.
        models (`Mapping[str, torch.nn.Module]`): The models by component.
        timed (`bool`, *optional*, defaults to `False`): Whether updates may depend on the timestep.

    Returns:
        `dict[str, ModelPlan]`: What is done to each model that the adapter touches.

    Raises:
        LoRAError: If a layer has another size, or if the models have none of the layers.
    """
    plans = {component: ModelPlan() for component in models}
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
            if not (timed and isinstance(update, Timed)):
                update.check_static(name)
            _add_update(plan, name, update, layer)
        else:
            plan.patches.extend(_patches(name, update, layer))
    for component, count in absent.items():
        layers_of = "1 layer of the LoRA belongs" if count == 1 else f"{count} layers of the LoRA belong"
        logger.warning("%s to `%s`, which the pipeline does not have.", layers_of, component)
    _report_missing(plans)
    return {component: plan for component, plan in plans.items() if plan.updates or plan.patches}


def _live_name(name: str, layers: Mapping[str, nn.Module]) -> str:
    """Return the name as the loaded model has it: transformers 5 dropped CLIP's level `text_model.`."""
    if name in layers:
        return name
    other = name.removeprefix("text_model.") if name.startswith("text_model.") else f"text_model.{name}"
    return other if other in layers else name


def _linear_size(layer: Any) -> tuple[int, int]:
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    return base.out_features, base.in_features


def _is_linear(layer: nn.Module) -> bool:
    # Quantised layers are not `nn.Linear` but have its sizes.
    return hasattr(layer, "in_features") and hasattr(layer, "out_features")


def _add_update(plan: ModelPlan, name: str, update: Update, layer: nn.Module) -> None:
    outputs, inputs = _linear_size(layer)
    if isinstance(update.inner, Bias):
        bias = {n: p for n, p in update.parts.items() if n in ("bias", "diff_b")}
        zeros = {"down": torch.zeros(1, inputs), "up": torch.zeros(outputs, 1)}
        update = LoRA({**zeros, **bias}, update.scale)
    fits = update.in_features == inputs or name == "x_embedder" and update.is_plain
    if update.out_features != outputs or not fits:
        raise LoRAError(
            f"The LoRA updates `{name}` with a matrix of shape {(update.out_features, update.in_features)}; the "
            f"model's is {(outputs, inputs)}. It was trained on a model of another size."
        )
    plan.updates[name] = update


def _patches(name: str, update: Update, layer: nn.Module) -> Iterator[Patch]:
    for part, value in update.parts.items():
        if part not in _PATCH_PARTS:
            raise LoRAError(f"`{name}` is not a Linear layer, but the LoRA has {sorted(update.parts)} for it.")
        which = "bias" if part in ("diff_b", "b_norm") else "weight"
        patched = getattr(layer, which, None)
        if not isinstance(patched, nn.Parameter) or patched.shape != value.shape:
            shape = tuple(patched.shape) if isinstance(patched, nn.Parameter) else None
            raise LoRAError(
                f"The LoRA has `{part}` of shape {tuple(value.shape)}; expected {shape}, as `{name}.{which}`."
            )
        yield Patch(f"{name}.{which}", value, _PATCH_PARTS[part])


def _report_missing(plans: Mapping[str, ModelPlan]) -> None:
    missing = [f"{component}.{name}" for component, plan in plans.items() for name in plan.missing]
    if not missing:
        return
    found = sum(len(plan.updates) + len(plan.patches) for plan in plans.values())
    if not found:
        raise LoRAError(f"The pipeline does not have any of the layers of this LoRA: {list_keys(missing)}.")
    logger.warning(
        "The pipeline does not have %d of the %d layers of this LoRA, they are left out: %s.",
        len(missing), found + len(missing), list_keys(missing),
    )  # fmt: skip


def check_plans(plans: Mapping[str, ModelPlan], models: Mapping[str, nn.Module], name: str, hotswap: bool) -> None:
    """Check that plans can be carried out under an adapter's name.

    Raises:
        LoRAError: If there is nothing to do, the name is taken or unfit, or an update cannot be swapped in place.
    """
    if not plans:
        raise LoRAError("The LoRA updates no layer of this pipeline.")
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise LoRAError(
            f"The adapter's name is {name!r}; expected a word without a dot that is not a method of a dict."
        )
    taken = [component for component, model in models.items() if name in adapter_names(model)]
    if taken and not hotswap:
        raise LoRAError(f"There already is an adapter {name!r} in {taken}. Delete it, or choose another name.")
    if hotswap and taken != ["transformer"]:
        raise LoRAError(
            f"Only a LoRA of the transformer can be swapped in place; {name!r} is in {taken or 'nothing'}."
        )
    if hotswap and (_is_special(models["transformer"], name) or not _is_plain(plans)):
        raise LoRAError(
            "Only LoRAs of the transformer can be swapped in place: no text encoders, norms, DoRA or LoKr."
        )


def _is_plain(plans: Mapping[str, ModelPlan]) -> bool:
    return set(plans) == {"transformer"} and not plans["transformer"].patches and not plans["transformer"].special


def _is_special(model: nn.Module, name: str) -> bool:
    layers = (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    return name in patched_adapters(model) or any(name in getattr(layer, "lora_variant", ()) for layer in layers)


def adapter_names(model: nn.Module) -> list[str]:
    """Return the adapters of a model."""
    return list(dict.fromkeys([*getattr(model, "peft_config", {}), *patched_adapters(model)]))


def free_name(models: Iterable[nn.Module]) -> str:
    """Return a name that is not used by any adapter of the models."""
    taken = {name for model in models for name in adapter_names(model)}
    return next(name for number in range(len(taken) + 1) if (name := f"default_{number}") not in taken)
