"""LoRA-Fusion's gates in training, over LoRAs that stay as they are."""

from __future__ import annotations

from typing import Any

import torch

from ...lora.loading.load import load_lora
from ...methods.loading import load_module
from ...methods.lora_fusion.gates import FluxLoRAFusion
from ...methods.lora_fusion.hook import enable_lora_fusion
from ..config.train_section import FusionSection
from ..trained import TrainedModule, from_scratch


NAME = "lora_fusion"
"""Begins the names of the gates' parameters, and is that of the exported folder."""


def add_fusion(pipe: Any, section: FusionSection, seed: int) -> TrainedModule:
    """Load LoRAs into a pipeline, and put gates over them, in float32.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline; its text encoders may be missing.
        section (`FusionSection`): The LoRAs and the gates.
        seed (`int`): Seed of new gates.

    Returns:
        `TrainedModule`: the gates.

    Raises:
        LoRAError: if a LoRA cannot be read or does not fit.
        ValueError: if the gates do not fit the transformer.
    """
    for file in section.loras:
        load_lora(pipe, file)
    pipe.transformer.requires_grad_(False)
    fusion = _gates(pipe.transformer, section.path, seed)
    enable_lora_fusion(pipe.transformer, fusion)
    return TrainedModule(fusion, NAME)


def _gates(transformer: Any, path: str | None, seed: int) -> FluxLoRAFusion:
    if path is None:
        fusion: FluxLoRAFusion = from_scratch("lora-fusion", transformer, seed=seed)
        return fusion
    loaded: FluxLoRAFusion = load_module((FluxLoRAFusion,), path, dtype=torch.float32)
    return loaded.to(device=transformer.device)
