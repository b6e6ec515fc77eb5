"""The key layouts of FLUX.1 ControlNet checkpoints: a transformer's trunk and a few additional tensors.

Files in diffusers' layout (InstantX, Shakker Labs, alimama, the upscaler, InfuseNet), XLabs' single files, which have
Black Forest Labs' names, and DiffSynth-Studio's are told apart by their names and shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxControlNetModel

from ...checkpoints.config import check_heads, check_overrides, infer_trunk_config, raise_if_missing
from ...checkpoints.layouts import (
    LAYOUTS,
    Shapes,
    TensorRecipe,
    TransformerLayout,
    detect_transformer_layout,
    plan_transformer_conversion,
    split_block_index,
)
from ...checkpoints.sizes import check_dimensions


# One row per tensor: diffusers and DiffSynth-Studio, XLabs. `{}` is the index of a block.
HINT_CONVOLUTIONS = ("conv_in", *(f"blocks.{index}" for index in range(6)), "conv_out")
LAYERS: tuple[tuple[str, str], ...] = (
    ("controlnet_x_embedder", "pos_embed_input"),
    ("controlnet_blocks.{}", "controlnet_blocks.{}"),
    ("controlnet_single_blocks.{}", "controlnet_single_blocks.{}"),
    *((f"input_hint_block.{name}", f"input_hint_block.{2 * index}") for index, name in enumerate(HINT_CONVOLUTIONS)),
)
TENSORS: tuple[tuple[str, str], ...] = (
    ("controlnet_mode_embedder.weight", "controlnet_mode_embedder.weight"),
    *((f"{ours}.{suffix}", f"{xlabs}.{suffix}") for ours, xlabs in LAYERS for suffix in ("weight", "bias")),
)
EMBEDDER, MODES, HINT = "controlnet_x_embedder.weight", "controlnet_mode_embedder.weight", "input_hint_block"


def _own_names(layout: TransformerLayout) -> dict[str, str]:
    """From the spelling of `layout` to diffusers'."""
    return {(xlabs if layout == "bfl" else ours): ours for ours, xlabs in TENSORS}


def plan_controlnet_conversion(shapes: Shapes, to: TransformerLayout = "diffusers") -> dict[str, TensorRecipe]:
    """Plan the conversion of a FLUX.1 ControlNet of any width and depth from the shapes of its tensors.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in any layout.
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout to convert to: `"diffusers"`, `"bfl"` (XLabs) or `"diffsynth"`.

    Returns:
        `dict[str, TensorRecipe]`: How each tensor of the target layout is made.

    Raises:
        ValueError: If `to` or a key is unknown, if there is no ControlNet in the file, or if parts do not fit.
    """
    if to not in LAYOUTS:
        raise ValueError(f"`to` is {to!r}; expected one of {LAYOUTS}.")
    layout = detect_transformer_layout(shapes)
    known = _own_names(layout)
    spelled = {ours: key for key, ours in _own_names(to).items()}
    forms = {key: split_block_index(key) for key in shapes}
    own = [key for key, (form, _) in forms.items() if form in known]
    if not own:
        raise ValueError(
            "These are the keys of a FLUX.1 transformer without those of a ControlNet, such as "
            f"{', '.join(sorted(known)[:3])}. Load it with `FluxExtTransformer2DModel`."
        )
    plan = plan_transformer_conversion({key: shape for key, shape in shapes.items() if key not in own}, to)
    for key in own:
        form, index = forms[key]
        plan[spelled[known[form]].format(index)] = TensorRecipe((key,), tuple(shapes[key]))
    return plan


def convert_controlnet_state_dict(
    state_dict: Mapping[str, torch.Tensor], to: TransformerLayout = "diffusers"
) -> dict[str, torch.Tensor]:
    """Convert a FLUX.1 ControlNet of any width and depth between key layouts.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Weights in any layout; not changed. Unfused and renamed tensors share memory with it.
        to (`str`, *optional*, defaults to `"diffusers"`):
            See [`plan_controlnet_conversion`].

    Returns:
        `dict[str, torch.Tensor]`: The weights in the other layout, with their dtypes and devices.

    Raises:
        ValueError: See [`plan_controlnet_conversion`].
    """
    plan = plan_controlnet_conversion({key: tensor.shape for key, tensor in state_dict.items()}, to)
    return {key: recipe.build(state_dict.__getitem__) for key, recipe in plan.items()}


def infer_controlnet_config(
    shapes: Shapes, layout: TransformerLayout = "diffusers", **overrides: Any
) -> dict[str, Any]:
    """Infer the arguments of [`FluxExtControlNetModel`] from the shapes of its weights.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by diffusers key.
        layout (`str`, *optional*, defaults to `"diffusers"`):
            The layout whose key names appear in errors.
        overrides:
            Arguments that replace inferred ones.

    Returns:
        `dict[str, Any]`: The arguments, all of them.

    Raises:
        ValueError: If a key that determines a size is missing; if sizes do not fit together; if the heads are not 128
        wide
            and `axes_dims_rope` is not given.
        TypeError: If an override is not an argument of the constructor.
    """
    check_overrides(FluxControlNetModel, overrides, added=["extra_condition_channels"])
    config = infer_trunk_config(shapes, layout)
    hint = f"{HINT}.conv_out.weight" if any(key.startswith(f"{HINT}.") for key in shapes) else None
    sized = {EMBEDDER: 2} | ({MODES: 2} if MODES in shapes else {}) | ({hint: 4} if hint else {})
    raise_if_missing([key for key in sized if key not in shapes], layout)
    check_dimensions(shapes, sized)
    cells = config["in_channels"] // shapes[hint][0] if hint else 1
    config |= {
        "patch_size": round(cells**0.5),
        "num_mode": shapes[MODES][0] if MODES in shapes else None,
        "conditioning_embedding_channels": shapes[hint][0] if hint else None,
        "extra_condition_channels": shapes[EMBEDDER][1] - config["in_channels"],
        **overrides,
    }
    check_heads(shapes, config)
    return config
