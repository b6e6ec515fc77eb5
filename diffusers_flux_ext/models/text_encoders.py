"""SigLIP and Qwen2.5-VL from single files, without a config beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ..checkpoints.messages import naming
from ..checkpoints.pretrained import load_transformers_model
from ..checkpoints.qwen_vl_files import infer_qwen_vl_config, plan_qwen_vl
from ..checkpoints.tensors import open_tensors
from ..checkpoints.vision_towers import infer_siglip_config, plan_siglip


Source = str | Path | Mapping[str, torch.Tensor]


def load_siglip(
    source: Source, *, torch_dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> SiglipVisionModel:
    """Load SigLIP's vision model from one file: that of a whole SigLIP, or of Redux.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        `SiglipVisionModel` in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with naming(source), open_tensors(source) as tensors:
        plan = plan_siglip(tensors.shapes)
        config = SiglipVisionConfig(**infer_siglip_config(plan))
        placed: dict[str, Any] = {"prefix": "vision_model.", "dtype": torch_dtype, "device": device}
        return load_transformers_model(SiglipVisionModel, config, plan, tensors, **placed)


def load_qwen_vl(
    source: Source,
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    model_class: Any = Qwen2_5_VLForConditionalGeneration,
    **config: Any,
) -> Any:
    """Load Qwen2.5-VL from the tensors of its shards, without the folder's config.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.
        model_class (`type`, *optional*): A class made from it, such as [`NexusGenModel`].
        config: Entries that replace inferred ones.

    Returns:
        `Qwen2_5_VLForConditionalGeneration` in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with naming(source), open_tensors(source) as tensors:
        plan = plan_qwen_vl(tensors.shapes)
        made = Qwen2_5_VLConfig(**{**infer_qwen_vl_config(plan), **config})
        placed: dict[str, Any] = {"dtype": torch_dtype, "device": device}
        return load_transformers_model(model_class, made, plan, tensors, **placed)
