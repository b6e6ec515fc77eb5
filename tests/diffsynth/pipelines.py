"""Pipelines of stand-ins that tests share."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.support.diffsynth.models import DEV
from diffusers_flux_ext.diffsynth import FluxImagePipeline, ModelConfig


TEXTS = ("text_encoder/model.safetensors", "text_encoder_2/*.safetensors", "ae.safetensors")
CALL: dict[str, Any] = {
    "prompt": "a cat",
    "seed": 0,
    "height": 48,
    "width": 64,
    "num_inference_steps": 2,
    "t5_sequence_length": 8,
    "progress_bar_cmd": list,
}


def config(model_id: str, pattern: str, **fields: Any) -> ModelConfig:
    """A file of the stand-ins."""
    return ModelConfig(model_id=model_id, origin_file_pattern=pattern, **fields)


def base(dit: tuple[str, str] = (DEV, "flux1-dev.safetensors")) -> list[ModelConfig]:
    """The four files of a script."""
    return [config(*dit), *(config(DEV, pattern) for pattern in TEXTS)]


def load(*configs: ModelConfig, **arguments: Any) -> FluxImagePipeline:
    """A pipeline of files in float32."""
    return FluxImagePipeline.from_pretrained(torch.float32, "cpu", list(configs), **arguments)


@cache
def shared(root: Path, *keys: tuple[str, str], dit: tuple[str, str] = (DEV, "flux1-dev.safetensors")) -> Any:
    """The base pipeline, with further files; no test may change it. `root` is the folder of the environment."""
    return load(*base(dit), *(config(*key) for key in keys))


def draw(pipe: FluxImagePipeline, **changed: Any) -> np.ndarray:
    """The image of a short call."""
    return np.asarray(pipe(**{**CALL, **changed})).astype(int)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images differ by more than rounding."""
    return bool(np.abs(one - other).max() > 1)
