"""PEFT's LoRA layers with another module in the place of `lora_B`: PEFT switches, weighs, fuses and deletes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor

from ..errors import LoRAError
from .fusing import check_layer


_DOWN = ".lora_A.weight"


class DeltaVariant(LoraVariant):
    """Has PEFT's LoRA layer add a delta module in place of `lora_B(lora_A(x))`."""

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
    """
    Refuses what a state dict of PEFT layers cannot say about updates that are no plain LoRAs.

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
