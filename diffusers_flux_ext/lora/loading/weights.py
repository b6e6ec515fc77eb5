"""User weights of adapters: one for all, or one per adapter, per model or per kind of block."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


logger = logging.getLogger(__name__)


def read_weights(names: Sequence[str], given: Any, models: Mapping[str, nn.Module]) -> list[Any]:
    """Return a weight for each adapter, in the form that diffusers takes.

    Args:
        names (`Sequence[str]`): The adapters.
        given (`float`, `dict` or a list of them, *optional*): As for `set_adapters`.
        models (`Mapping[str, torch.nn.Module]`): The models that LoRAs update, by component.

    Returns:
        `list`: A number, `None`, or a dict of its own for each adapter; names that mean nothing are left out with a
        warning, and a kind of block has become the layers in it.

    Raises:
        ValueError: If there are more or fewer weights than adapters, or one is not a finite number.
    """
    weights = list(given) if isinstance(given, list | tuple) else [given] * len(names)
    if len(weights) != len(names):
        raise ValueError(f"`adapter_weights` has {len(weights)} weights for the {len(names)} adapters {list(names)}.")
    return [_of_models(weight, models) if isinstance(weight, Mapping) else _number(weight) for weight in weights]


def _number(weight: Any) -> Any:
    if weight is not None and (not isinstance(weight, Real) or not math.isfinite(weight)):
        raise ValueError(f"`adapter_weights` has {weight!r}; expected finite numbers, or dicts of them by model.")
    return weight


def _of_models(weights: Mapping[str, Any], models: Mapping[str, nn.Module]) -> dict[str, Any]:
    unknown = sorted(map(str, set(weights) - set(models)))
    if unknown:
        logger.warning(
            "`adapter_weights` names %s, which the pipeline has no LoRAs for: they are left out. It has %s.",
            unknown, sorted(models),
        )  # fmt: skip
    known = {name: weight for name, weight in weights.items() if name in models}
    return {
        name: _of_layers(weight, name, models[name]) if isinstance(weight, Mapping) else _number(weight)
        for name, weight in known.items()
    }


def _of_layers(weights: Mapping[str, Any], component: str, model: nn.Module) -> dict[str, float]:
    """Return a weight for every layer, 1 by default: diffusers fails at layers without one."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    unused = [part for part in weights if not any(part in layer for layer in layers)]
    if unused:
        logger.warning("`adapter_weights` for `%s` names %s, which no layer of its LoRAs has.", component, unused)
    found = {layer: _number(next((weights[part] for part in weights if part in layer), 1.0)) for layer in layers}
    # A name is never part of a shorter one.
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))
