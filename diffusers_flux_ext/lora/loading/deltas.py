"""PEFT's LoRA layers with another module in place of `lora_B`: PEFT switches, weighs, fuses and deletes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import LoRAError


_DOWN = ".lora_A.weight"


class DeltaVariant(LoraVariant):
    """Makes PEFT's LoRA layer add a delta module in place of `lora_B(lora_A(x))`."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        pass

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        delta = module.lora_B[active_adapter]
        return result + delta(x, result.dtype) * module.scaling[active_adapter]

    @staticmethod
    def _delta(module: Any, active_adapter: str, weight: Tensor) -> Tensor:
        dense = module.lora_B[active_adapter].dense()
        return (dense * module.scaling[active_adapter]).to(weight.dtype)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        check_layer(f"a layer of {active_adapter}", module.get_base_layer())
        return orig_weight + DeltaVariant._delta(module, active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        check_layer(f"a layer of {active_adapter}", module.get_base_layer())
        delta = DeltaVariant._delta(module, active_adapter, orig_weight)
        # Kept, because the change of a DoRA cannot be computed from the merged weights.
        module.lora_B[active_adapter].merged = delta
        orig_weight.data += delta

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        delta = module.lora_B[active_adapter].merged
        module.lora_B[active_adapter].merged = None
        return orig_weight.data - delta


def check_plain(layers: Mapping[str, Any]) -> None:
    """Refuse updates that a state dict of PEFT layers cannot represent, which only holds plain LoRAs.

    Args:
        layers (`Mapping[str, torch.Tensor]`): The state dict.

    Raises:
        LoRAError: If there is such an update.
    """
    ranks = {key.removesuffix(_DOWN): value.shape[0] for key, value in layers.items() if key.endswith(_DOWN)}
    for key, value in layers.items():
        layer, found, part = key.rpartition(".lora_B.")
        if found and (part not in ("weight", "bias") or part == "weight" and ranks.get(layer) != value.shape[1]):
            raise LoRAError(
                f"`{layer}` has a LoKr, a DoRA, a dense delta or a timestep LoRA, which PEFT's layers hold only while "
                "they are loaded. Use the file that it came from, or `convert_lora` on it."
            )


def check_fusible(models: Mapping[str, nn.Module]) -> None:
    """Check that LoRAs can be added to the weights of models.

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
    """Raise a [`LoRAError`] unless a layer is a Linear whose weight is an ordinary tensor of at least 16 bits."""
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
