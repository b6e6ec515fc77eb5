"""FLUX.1's text encoders, SigLIP and Qwen2.5-VL from single files, without a config beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from ..checkpoints.messages import naming
from ..checkpoints.modules import read_tensors
from ..checkpoints.pretrained import load_transformers_model
from ..checkpoints.qwen_vl_files import infer_qwen_vl_config, plan_qwen_vl
from ..checkpoints.text_encoder_layouts import infer_clip_text_config, infer_t5_config, plan_clip_text, plan_t5
from ..checkpoints.vision_towers import infer_siglip_config, plan_siglip


Source = str | Path | Mapping[str, torch.Tensor]
EMBEDDING = {"encoder.embed_tokens.weight": "shared.weight"}


def load_clip_text(
    source: Source, *, torch_dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> CLIPTextModel:
    """Load FLUX.1's CLIP from one file, in the layout of transformers, OpenAI, ComfyUI or DiffSynth-Studio.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a pickle of tensors or a state dict.
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        `CLIPTextModel` in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with naming(source):
        tensors = read_tensors(source)
        plan = plan_clip_text(_shapes(tensors))
        return load_transformers_model(
            CLIPTextModel,
            CLIPTextConfig(**infer_clip_text_config(plan)),
            plan,
            tensors.__getitem__,
            prefix="text_model.",
            dtype=torch_dtype,
            device=device,
        )


def load_t5_encoder(
    source: Source, *, torch_dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> T5EncoderModel:
    """Load FLUX.1's T5 from one file or the tensors of its shards, in the layout of transformers or ComfyUI.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`): As for [`load_clip_text`].
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        `T5EncoderModel` in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with naming(source):
        tensors = read_tensors(source)
        plan = plan_t5(_shapes(tensors))
        config = T5Config(**infer_t5_config(plan))
        placed: dict[str, Any] = {"tied": EMBEDDING, "dtype": torch_dtype, "device": device}
        return load_transformers_model(T5EncoderModel, config, plan, tensors.__getitem__, **placed)


def load_siglip(
    source: Source, *, torch_dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> SiglipVisionModel:
    """Load SigLIP's vision model from one file: that of a whole SigLIP, or of Redux.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`): As for [`load_clip_text`].
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        `SiglipVisionModel` in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    with naming(source):
        tensors = read_tensors(source)
        plan = plan_siglip(_shapes(tensors))
        config = SiglipVisionConfig(**infer_siglip_config(plan))
        placed: dict[str, Any] = {"prefix": "vision_model.", "dtype": torch_dtype, "device": device}
        return load_transformers_model(SiglipVisionModel, config, plan, tensors.__getitem__, **placed)


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
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`): As for [`load_clip_text`].
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
    with naming(source):
        tensors = read_tensors(source)
        plan = plan_qwen_vl(_shapes(tensors))
        made = Qwen2_5_VLConfig(**{**infer_qwen_vl_config(plan), **config})
        placed: dict[str, Any] = {"dtype": torch_dtype, "device": device}
        return load_transformers_model(model_class, made, plan, tensors.__getitem__, **placed)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
