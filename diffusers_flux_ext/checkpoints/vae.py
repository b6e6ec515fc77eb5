"""Reader of FLUX.1's autoencoder from single files in any layout, at any width and depth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL

from .config import check_overrides
from .messages import list_keys, naming
from .model_configs import check_numbers
from .sizes import build_empty, check_dimensions, count_blocks
from .tensors import Tensors, config_beside, fill_from, open_tensors


ModelT = TypeVar("ModelT", bound=AutoencoderKL)
# FLUX.1's; they leave no trace in the weights.
NORM_GROUPS = 32
SCALING_FACTOR, SHIFT_FACTOR = 0.3611, 0.1159
_MARK = "decoder.conv_in.weight"
_ROOTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_IN, _OUT = "encoder.conv_in.weight", "decoder.conv_out.weight"

# Black Forest Labs' names, which are those of latent diffusion, and diffusers'.
_RENAMED = (
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", r".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
_ATTENTION = re.compile(r"(.*\.mid_block\.attentions\.0\.)(\w+)\.(weight|bias)")
# The names of the attention in latent diffusion, and in files that old versions of diffusers wrote.
_ATTENTION_NAMES = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def has_vae(keys: Iterable[str]) -> bool:
    """Whether there is an autoencoder among the tensors of a file, by their keys."""
    return bool(_prefixes(keys))


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
        found = _vae_tensors(tensors)
        beside = config_beside(source, ("AutoencoderKL", model_class.__name__))
        given = {name: value for name, value in beside.items() if not name.startswith("_")}
        config = _config(found.shapes, {**given, **overrides})
        check_numbers(config)
        model = build_empty(model_class, config)
        return fill_from(model, _as_matrices(model, found), torch_dtype, device)


def _prefixes(keys: Iterable[str]) -> list[str]:
    keys = set(keys)
    found = {key.removesuffix(_MARK) for key in keys if key == _MARK or key.endswith(f".{_MARK}")}
    return sorted(start for start in found if start + _IN in keys)


def _vae_tensors(tensors: Tensors) -> Tensors:
    starts = _prefixes(tensors.shapes)
    if len(starts) != 1:
        problem = f"several autoencoders, with the prefixes {starts}" if starts else "no autoencoder"
        raise ValueError(f"There is {problem} among the keys {list_keys(tensors.shapes)}.")
    start = starts[0]
    below = {key.removeprefix(start): key for key in tensors.shapes if key.startswith(start)}
    names = {key: old for key, old in below.items() if key.startswith(_ROOTS)}
    levels = count_blocks(names, "decoder.up")
    return tensors.select({_diffusers_key(key, levels): old for key, old in names.items()})


def _diffusers_key(key: str, levels: int) -> str:
    # Black Forest Labs count the decoder's levels from the image, diffusers from the latents.
    key = re.sub(r"^(decoder\.up\.)(\d+)\.", lambda found: f"{found[1]}{levels - 1 - int(found[2])}.", key)
    for pattern, new in _RENAMED:
        key = re.sub(pattern, new, key)
    attention = _ATTENTION.fullmatch(key)
    if attention and attention[2] in _ATTENTION_NAMES:
        return f"{attention[1]}{_ATTENTION_NAMES[attention[2]]}.{attention[3]}"
    return key


def _config(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> dict[str, Any]:
    levels = count_blocks(shapes, "encoder.down_blocks")
    first = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)]
    missing = [key for key in (_IN, _OUT, *first) if key not in shapes]
    if missing or not levels:
        raise ValueError(f"Keys of an autoencoder are missing: {list_keys(missing or ['encoder.down_blocks.0'])}.")
    check_dimensions(shapes, dict.fromkeys((_IN, _OUT, _MARK, *first), 4))
    channels = tuple(shapes[key][0] for key in first)
    config = {
        "in_channels": shapes[_IN][1],
        "out_channels": shapes[_OUT][0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": count_blocks(shapes, "encoder.down_blocks.0.resnets"),
        "latent_channels": shapes[_MARK][1],
        "norm_num_groups": None if any(width % NORM_GROUPS for width in channels) else NORM_GROUPS,
        "scaling_factor": SCALING_FACTOR,
        "shift_factor": SHIFT_FACTOR,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(".mid_block.attentions.0." in key for key in shapes),
        **given,
    }
    if not config["norm_num_groups"]:
        raise ValueError(
            f"The autoencoder has {channels} channels, which groups of normalisation, {NORM_GROUPS} in FLUX.1, do "
            "not divide, and their number leaves no trace in the weights. Pass `norm_num_groups`, or keep the model's "
            "`config.json` beside the file."
        )
    return config


def _as_matrices(model: Any, tensors: Tensors) -> Tensors:
    """Drop the two last dimensions of attention weights that are stored as 1 x 1 convolutions."""
    matrices = {key for key, weight in model.state_dict().items() if weight.ndim == 2}
    stored = {key for key in matrices & tensors.shapes.keys() if tensors.shapes[key][2:] == (1, 1)}

    def read(key: str) -> torch.Tensor:
        tensor = tensors.read(key)
        return tensor.flatten(1) if key in stored else tensor

    shapes = {key: shape[:2] if key in stored else shape for key, shape in tensors.shapes.items()}
    return replace(tensors, shapes=shapes, read=read)
