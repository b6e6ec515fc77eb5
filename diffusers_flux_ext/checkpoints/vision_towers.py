"""SigLIP's vision model in single files: Redux' own, or the one in a whole SigLIP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .layouts import Shapes, TensorRecipe
from .messages import list_keys
from .sizes import check_dimensions, count_blocks


PREFIX = "vision_model."
RELEASED_HEADS = 16
_FIRST = (
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.0.mlp.fc1.weight",
)
_PARTS = ("embeddings.", "encoder.layers.", "post_layernorm.", "head.")
_BESIDE = ("text_model.", "logit_scale", "logit_bias")


def plan_siglip(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of SigLIP's vision model are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key. The text model of a whole SigLIP is left out.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `SiglipVisionModel`, without its prefix `vision_model.`.

    Raises:
        ValueError: if it is another model, or a key is unknown.
    """
    prefix = PREFIX if any(key.startswith(PREFIX) for key in shapes) else ""
    inside = {key.removeprefix(prefix): key for key in shapes if not key.startswith(_BESIDE)}
    unknown = [source for key, source in inside.items() if not (source.startswith(prefix) and key.startswith(_PARTS))]
    missing = [key for key in _FIRST if key not in inside]
    if unknown or missing:
        raise ValueError(
            f"This is not a file of SigLIP's vision model: missing are {list_keys(missing) or 'none'}, unknown are "
            f"{list_keys(unknown) or 'none'}."
        )
    ids = "embeddings.position_ids"
    return {key: TensorRecipe((source,), tuple(shapes[source])) for key, source in inside.items() if key != ids}


def infer_siglip_config(plan: Mapping[str, TensorRecipe]) -> dict[str, Any]:
    """Infer the arguments of `SiglipVisionConfig` from a plan; there are 16 heads, as released.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_siglip`].

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors have a wrong number of dimensions.
    """
    patch, places, inner = (plan[key].shape for key in _FIRST)
    check_dimensions({key: plan[key].shape for key in _FIRST}, dict(zip(_FIRST, (4, 2, 2))))
    return {
        "hidden_size": patch[0],
        "intermediate_size": inner[0],
        "num_hidden_layers": count_blocks(plan, "encoder.layers"),
        "num_attention_heads": RELEASED_HEADS,
        "num_channels": patch[1],
        "patch_size": patch[2],
        "image_size": math.isqrt(places[0]) * patch[2],
    }
