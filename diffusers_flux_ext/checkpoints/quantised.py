"""Models of quantised weights: GGUF files, and any quantisation that diffusers applies while it loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin

from .._compat import reads_single_files
from .config import check_fit
from .tensors import open_tensors


def load_quantised(
    model_class: Any,
    source: str | Path | Mapping[str, torch.Tensor],
    quantization_config: Any,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    overrides: Mapping[str, Any],
) -> Any:
    """Load a model with quantised weights through diffusers' own loader.

    The keys are converted and the config is inferred here; quantising and replacing layers is left to diffusers.

    Args:
        model_class (`type`):
            A [`SingleFileMixin`] that extends a model of diffusers.
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A GGUF or safetensors file, or a state dict, in any key layout.
        quantization_config (`diffusers.QuantizationConfigMixin`):
            What to quantise and how, such as `GGUFQuantizationConfig(compute_dtype=torch.bfloat16)`.
        dtype (`torch.dtype`, *optional*):
            Dtype of what is not quantised; the quantisation's own by default.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        overrides (`Mapping[str, Any]`):
            Arguments of the constructor that replace inferred ones.

    Returns:
        the model, in eval mode.

    Raises:
        TypeError: If `quantization_config` is something else.
        ValueError: If diffusers cannot quantise this class while loading; if keys are unknown or missing.
    """
    if not hasattr(quantization_config, "quant_method"):
        raise TypeError(
            f"`quantization_config` is {quantization_config!r}; expected a config of diffusers, such as "
            "`GGUFQuantizationConfig(compute_dtype=torch.bfloat16)`."
        )
    if not reads_single_files(model_class):
        raise ValueError(
            f"diffusers does not quantise {model_class.__name__} while it loads a single file. Leave out "
            f"`quantization_config`, save the model by `save_pretrained`, and quantise it by `from_pretrained`."
        )
    with ExitStack() as stack:
        read = stack.enter_context(open_tensors(source))
        tensors = read.select(model_class.own_keys(read.shapes))
        plan, config, layout = model_class.plan_load(tensors.shapes, overrides)
        with torch.device("meta"):
            check_fit(model_class(**config), plan, layout)
        weights = {key: recipe.build(tensors.read) for key, recipe in plan.items()}
        folder = stack.enter_context(TemporaryDirectory())
        # diffusers' class takes a config only from a folder.
        Path(folder, "config.json").write_text(json.dumps({"_class_name": model_class.__name__, **config}))
        load = FromOriginalModelMixin.from_single_file.__func__
        return load(
            model_class, weights, config=folder, quantization_config=quantization_config, dtype=dtype, device=device
        )
