"""Reader of FLUX.1's autoencoder from single files in any layout, at any width and depth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL

from .config import check_overrides
from .messages import naming
from .model_configs import check_numbers
from .sizes import build_empty
from .tensors import config_beside, fill_from, open_tensors
from .vae_layouts import infer_vae_config, plan_vae


ModelT = TypeVar("ModelT", bound=AutoencoderKL)


def read_vae(
    source: str | Path | Mapping[str, torch.Tensor],
    model_class: type[ModelT] = AutoencoderKL,
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    **overrides: Any,
) -> ModelT:
    """Read the autoencoder from a single file, alone or beside other models.

    The names of diffusers and of Black Forest Labs (those of latent diffusion) are recognised after any prefix: none,
    ComfyUI's `vae.`, `first_stage_model.` and so on. Sizes follow from the shapes; what does not is read from a
    `config.json` beside the file, or is FLUX.1's.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder or index of several, a pickle of tensors only, or a state dict.
        model_class (`type`, *optional*, defaults to `AutoencoderKL`):
            The class of the result, such as [`AutoencoderKLFlux`].
        torch_dtype (`torch.dtype`, *optional*):
            Data type of the model; that of each tensor by default.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        overrides:
            Arguments of the constructor that replace the inferred ones, such as `norm_num_groups=4`.

    Returns:
        `AutoencoderKL`: of `model_class`, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no autoencoder in it or more than one, if keys are missing or shapes do not fit
            together, or if the channels are not multiples of 32 and `norm_num_groups` is not known.
        TypeError: If an override is not an argument of the constructor.
    """
    check_overrides(model_class, overrides)
    with naming(source), open_tensors(source) as tensors:
        plan = plan_vae(tensors.shapes)
        beside = config_beside(source, ("AutoencoderKL", model_class.__name__))
        given = {name: value for name, value in beside.items() if not name.startswith("_")}
        config = infer_vae_config(plan, {**given, **overrides})
        check_numbers(config)
        model = build_empty(model_class, config)
        wanted = {key: weight.shape for key, weight in model.state_dict().items()}
        return fill_from(model, tensors.planned(plan, wanted), torch_dtype, device)
