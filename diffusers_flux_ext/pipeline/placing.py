"""Where a whole pipeline computes, without a budget."""

from __future__ import annotations

from typing import Any

import torch


def place_pipeline(pipe: Any, device: torch.device | str, offload: str) -> None:
    """Move a pipeline to a device, or let its parts come there when they are needed.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        device (`torch.device` or `str`): Where it computes.
        offload (`str`): `"none"`, `"model"` or `"sequential"`, as diffusers has them; not for the CPU.
    """
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
