"""Where a LoRA can be added to the weights: only where they are stored as the numbers that are computed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import LoRAError


def check_fusible(models: Mapping[str, nn.Module]) -> None:
    """
    Checks that LoRAs can be added to the weights of models.

    Args:
        models (`Mapping[str, torch.nn.Module]`): The models by component.

    Raises:
        LoRAError: If weights under a LoRA are quantised, stored in 8 bits or not in memory.
    """
    for component, model in models.items():
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                check_layer(f"{component}.{name}", layer.get_base_layer())


def check_layer(name: str, base: Any) -> None:
    """Raises a [`LoRAError`] unless a layer is a Linear whose weight is an ordinary tensor of at least 16 bits."""
    weight = base.weight
    plain = type(base).forward is nn.Linear.forward and type(weight) is nn.Parameter and not weight.is_meta
    if plain and weight.is_floating_point() and weight.dtype.itemsize > 1:
        return
    where = "without values in memory" if weight.is_meta else f"of {str(weight.dtype).removeprefix('torch.')}"
    raise LoRAError(
        f"LoRAs cannot be fused exactly into `{name}`: it is a {type(base).__name__} with a {type(weight).__name__} "
        f"{where}, and what is added would be rounded, or lost. Leave the LoRAs unfused, which loses nothing; or fuse "
        "them into the unquantised weights, with `fuse_lora_into` or before quantising, casting or offloading."
    )


def has_fused(model: nn.Module) -> bool:
    """Whether a model has adapters that are fused into its weights."""
    layers = (layer for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    return any(layer.merged for layer in layers)
