"""The config of a FLUX.1 transformer, inferred from the shapes of its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from .layouts import Shapes, TensorRecipe, TransformerLayout, spell_in_layout
from .messages import MAX_LISTED_KEYS, list_keys
from .sizes import check_dimensions, count_blocks


RELEASED_HEAD_DIM, RELEASED_AXES = 128, (16, 56, 56)
TEXT_EMBEDDER = "time_text_embed.text_embedder.linear_1.weight"
MATRICES = ("x_embedder.weight", "context_embedder.weight", TEXT_EMBEDDER)


def infer_transformer_config(
    shapes: Shapes, layout: TransformerLayout = "diffusers", **overrides: Any
) -> dict[str, Any]:
    """Infer the arguments of `FluxTransformer2DModel` from the shapes of its weights.

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
    check_overrides(FluxTransformer2DModel, overrides)
    raise_if_missing(["proj_out.weight"] if "proj_out.weight" not in shapes else [], layout)
    config = infer_trunk_config(shapes, layout)
    out_channels = shapes["proj_out.weight"][0]
    config["out_channels"] = None if out_channels == config["in_channels"] else out_channels
    config.update(overrides)
    check_heads(shapes, config)
    return config


def infer_trunk_config(shapes: Shapes, layout: TransformerLayout) -> dict[str, Any]:
    """Infer the arguments that a transformer and a ControlNet have in common from the shapes.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by diffusers key.
        layout (`str`): The layout whose key names appear in errors.

    Returns:
        `dict[str, Any]`: The arguments; `axes_dims_rope` is `None` unless the heads are as wide as the released ones.

    Raises:
        ValueError: If a key that determines a size is missing.
    """
    double, single = (count_blocks(shapes, name) for name in ("transformer_blocks", "single_transformer_blocks"))
    norm = f"{'transformer_blocks' if double else 'single_transformer_blocks'}.0.attn.norm_q.weight"
    optional = {"proj_out.weight": 2} if "proj_out.weight" in shapes else {}
    dimensions = {**dict.fromkeys(MATRICES, 2), **optional, norm: 1}
    raise_if_missing([key for key in dimensions if key not in shapes], layout)
    check_dimensions(shapes, dimensions)
    width, in_channels = shapes["x_embedder.weight"]
    head_dim = shapes[norm][0]
    return {
        "patch_size": 1,
        "in_channels": in_channels,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes[TEXT_EMBEDDER][1],
        "guidance_embeds": any(key.startswith("time_text_embed.guidance_embedder.") for key in shapes),
        "axes_dims_rope": RELEASED_AXES if head_dim == RELEASED_HEAD_DIM else None,
    }


def check_overrides(model_class: type, overrides: Mapping[str, Any], added: Sequence[str] = ()) -> None:
    """Raise a `TypeError` if an override is neither an argument of the constructor nor in `added`."""
    known = {*inspect.signature(model_class.__init__).parameters, *added} - {"self"}  # type: ignore[misc]
    if not overrides.keys() <= known:
        raise TypeError(
            f"Unknown arguments of the model: {sorted(overrides.keys() - known)}. Expected some of {sorted(known)}."
        )


def check_heads(shapes: Shapes, config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if the heads do not fill the model or the rotary axes do not fill a head."""
    width = shapes["x_embedder.weight"][0]
    heads, head_dim, axes = (config[n] for n in ("num_attention_heads", "attention_head_dim", "axes_dims_rope"))
    if heads * head_dim != width:
        raise ValueError(f"The model is {width} wide, which {heads} heads of {head_dim} do not fill.")
    if axes is None:
        raise ValueError(
            f"The heads are {head_dim} wide. How the rotary embedding divides them between the position axes leaves "
            f"no trace in the weights; it is {RELEASED_AXES} for {RELEASED_HEAD_DIM}. Pass "
            f"`axes_dims_rope=(a, b, c)` with even numbers of sum {head_dim}."
        )
    if len(axes) != 3 or sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise ValueError(f"`axes_dims_rope` is {tuple(axes)}; expected three even numbers of sum {head_dim}.")


def raise_if_missing(keys: list[str], layout: TransformerLayout) -> None:
    """Raise a `ValueError` that names diffusers' `keys` as `layout` spells them, if there are any."""
    if keys:
        missing = list_keys({spell_in_layout(key, layout) for key in keys})
        raise ValueError(f"Keys of a FLUX.1 transformer in the {layout!r} layout are missing: {missing}.")


def check_fit(model: torch.nn.Module, plan: Mapping[str, TensorRecipe], layout: TransformerLayout) -> None:
    """Check that a plan provides exactly the tensors of a model.

    Args:
        model (`torch.nn.Module`):
            The model; it may be on the meta device.
        plan (`Mapping[str, TensorRecipe]`):
            The tensors by the model's keys.
        layout (`str`):
            The layout whose key names appear in errors.

    Raises:
        ValueError: If tensors are missing or surplus, or have another shape than the model's.
    """
    expected = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    raise_if_missing([key for key in expected if key not in plan], layout)
    surplus = sorted({source for key, recipe in plan.items() if key not in expected for source in recipe.sources})
    if surplus:
        raise ValueError(f"The model of this config has no place for {list_keys(surplus)}.")
    wrong = {key: recipe.shape for key, recipe in plan.items() if recipe.shape != expected[key]}
    if wrong:
        listed = "; ".join(
            f"{list_keys(plan[key].sources)} gives {shape} for `{key}` of shape {expected[key]}"
            for key, shape in sorted(wrong.items())[:MAX_LISTED_KEYS]
        )
        raise ValueError(f"{len(wrong)} tensors do not fit the model of this config: {listed}.")
