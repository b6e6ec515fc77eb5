"""The reference's gates (it calls them mergers), with the weights of ours, on its pipeline."""

from typing import Any

from torch import nn

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import FluxLoRAFusion


flux_lora_patcher = import_reference("diffsynth.models.flux_lora_patcher")


def reference_lora_patcher(fusion: FluxLoRAFusion) -> nn.Module:
    """The reference's `FluxLoraPatcher`."""
    patterns = [{"name": name, "dim": gate.bias.shape[0]} for name, gate in fusion.gates.items()]
    module = flux_lora_patcher.FluxLoraPatcher(patterns)
    module.load_state_dict(fusion.state_dict())
    return module.eval().requires_grad_(False)


def load_merged(pipe: Any, fusion: FluxLoRAFusion, loras: list[dict[str, Any]], weights: list[float]) -> None:
    """Loads LoRAs into the reference's pipeline as its example does, in place of those before."""
    pipe.clear_lora(verbose=0)
    for lora, weight in zip(loras, weights, strict=True):
        pipe.load_lora(pipe.dit, state_dict=dict(lora), alpha=weight, hotload=True, verbose=0)
    pipe.lora_patcher = reference_lora_patcher(fusion)
    pipe.enable_lora_merger()
