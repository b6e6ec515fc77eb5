"""Readers of FLUX.1's text encoders, CLIP and T5, from single files in any layout, at any width and depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .messages import naming
from .model_configs import check_numbers
from .packed import load_packed_model
from .pretrained import load_transformers_model
from .tensors import config_beside, open_tensors
from .text_encoder_layouts import EMBEDDING, infer_clip_text_config, infer_t5_config, plan_clip_text, plan_t5


def read_clip(
    source: str | Path | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    prefix: str | None = None,
    **overrides: Any,
) -> CLIPTextModel:
    """Read a CLIP text model from a single file, alone or beside other models.

    The names of transformers, OpenAI and DiffSynth-Studio are recognised after any prefix: none, `text_model.`,
    `text_encoders.clip_l.transformer.text_model.` of ComfyUI, `cond_stage_model.transformer.text_model.` and so on.
    Sizes follow from the shapes; what does not (`num_attention_heads`) is read from a `config.json` beside the file,
    or is that of CLIP large.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*):
            Data type of the model; by default the one that holds all of the file's. It is bfloat16 for weights in
            eight bits, and for all of a file with scales or packed weights.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        prefix (`str`, *optional*):
            What stands before the keys, where a file holds several text models.
        overrides:
            Entries of `CLIPTextConfig` that replace the inferred ones, such as `num_attention_heads=2`.

    Returns:
        `CLIPTextModel`: in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no CLIP text model in it or more than one, if keys are missing or unknown, if shapes do
            not fit together, or if the heads are not 64 wide and `num_attention_heads` is not known.
    """
    with naming(source), open_tensors(source) as tensors:
        plan = plan_clip_text(tensors.shapes, prefix)
        beside = config_beside(source, ("clip", "clip_text_model"))
        config = _config(CLIPTextConfig, infer_clip_text_config(plan, {**beside, **overrides}))
        placed: dict[str, Any] = {"dtype": torch_dtype, "device": device}
        return load_transformers_model(CLIPTextModel, config, plan, tensors, prefix="text_model.", **placed)


def read_t5(
    source: str | Path | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization_config: Any = None,
    prefix: str | None = None,
    **overrides: Any,
) -> T5EncoderModel:
    """Read the encoder of T5 from a single file, alone or beside other models.

    The names of transformers are recognised after any prefix, such as ComfyUI's `text_encoders.t5xxl.transformer.`,
    and those of llama.cpp, which GGUF files have. Sizes follow from the shapes; what does not
    (`relative_attention_max_distance`) is read from a `config.json` beside the file, or is that of the published
    models. A decoder in the file is left out.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors or GGUF file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*):
            Data type of the model; by default the one that holds all of the file's. It is bfloat16 for weights in
            eight bits, and for all of a file with scales or packed weights.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        quantization_config (`diffusers.GGUFQuantizationConfig`, *optional*):
            Keep the weights of a GGUF file packed, and compute in its `compute_dtype`. They are unpacked by default.
        prefix (`str`, *optional*):
            What stands before the keys, where a file holds several encoders.
        overrides:
            Entries of `T5Config` that replace the inferred ones.

    Returns:
        `T5EncoderModel`: in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no T5 encoder in it or more than one, if keys are missing or unknown, if shapes do not
            fit together, if the number of buckets is not 32 and `relative_attention_max_distance` is not known, or if
            `quantization_config` is not one for GGUF or the file is not one.
    """
    with naming(source), open_tensors(source) as tensors:
        plan = plan_t5(tensors.shapes, prefix)
        config = _config(T5Config, infer_t5_config(plan, {**config_beside(source, ("t5",)), **overrides}))
        placed: dict[str, Any] = {"tied": EMBEDDING, "dtype": torch_dtype, "device": device}
        if quantization_config is not None:
            return load_packed_model(T5EncoderModel, config, plan, tensors, quantization_config, **placed)
        return load_transformers_model(T5EncoderModel, config, plan, tensors, **placed)


def _config(config_class: Any, config: Mapping[str, Any]) -> Any:
    check_numbers(config)
    ignored = ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype")
    return config_class(**{name: value for name, value in config.items() if name not in ignored})
