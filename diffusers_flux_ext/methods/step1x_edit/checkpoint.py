"""The connector in the published files of Step1X-Edit, which hold a transformer and `connector.*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checkpoints.config import check_overrides
from ...checkpoints.layouts import CONNECTOR, Shapes, TensorRecipe, has_connector
from ...checkpoints.messages import list_keys
from ...checkpoints.sizes import check_dimensions, count_blocks, is_index


# Names of a tensor's module: as published, and ours.
MODULES = (
    ("S.input_embedder", "proj_in"),
    ("S.t_embedder.mlp.0", "time_embedder.linear_1"),
    ("S.t_embedder.mlp.2", "time_embedder.linear_2"),
    ("S.c_embedder.linear_1", "text_embedder.linear_1"),
    ("S.c_embedder.linear_2", "text_embedder.linear_2"),
    ("S.individual_token_refiner.blocks.{}.norm1", "blocks.{}.norm1"),
    ("S.individual_token_refiner.blocks.{}.self_attn_qkv", "blocks.{}.to_qkv"),
    ("S.individual_token_refiner.blocks.{}.self_attn_proj", "blocks.{}.to_out"),
    ("S.individual_token_refiner.blocks.{}.norm2", "blocks.{}.norm2"),
    ("S.individual_token_refiner.blocks.{}.mlp.fc1", "blocks.{}.mlp.0"),
    ("S.individual_token_refiner.blocks.{}.mlp.fc2", "blocks.{}.mlp.2"),
    ("S.individual_token_refiner.blocks.{}.adaLN_modulation.1", "blocks.{}.gates"),
    ("global_proj_out", "pooled_proj"),
)
OURS = {f"{published}.{part}": f"{ours}.{part}" for published, ours in MODULES for part in ("weight", "bias")} | {
    "scale_factor": "pooled_scale"
}
RELEASED_HEAD_DIM = 128
_BLOCKS = "S.individual_token_refiner.blocks."


def plan_connector(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the connector's tensors are taken from a published file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key: of a whole file, whose other keys are left alone, or of a connector without its prefix.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each of our keys.

    Raises:
        ValueError: if there is no connector, or a key of it is unknown.
    """
    prefix = CONNECTOR if has_connector(shapes) else ""
    plan, unknown = {}, []
    for key, shape in shapes.items():
        if not key.startswith(prefix):
            continue
        bare = key.removeprefix(prefix)
        form, index = _split_index(bare)
        ours = OURS.get(form)
        if ours is None:
            unknown.append(key)
        else:
            plan[ours.format(index)] = TensorRecipe((key,), tuple(shape))
    if unknown or "pooled_proj.weight" not in plan:
        raise ValueError(
            f"This is not a connector of Step1X-Edit: it lacks `{CONNECTOR}global_proj_out.weight`, or has keys that "
            f"are unknown: {list_keys(unknown)}. Files from version 1.2 on have another connector and are not read."
        )
    return plan


def _split_index(key: str) -> tuple[str, str]:
    index, _, rest = key.removeprefix(_BLOCKS).partition(".")
    return (f"{_BLOCKS}{{}}.{rest}", index) if key.startswith(_BLOCKS) and is_index(index) else (key, "")


def infer_connector_config(
    model_class: type, plan: Mapping[str, TensorRecipe], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Infer the arguments of `Step1XConnector` from the shapes of its tensors.

    The number that scales the mean tells version 1.0 from 1.1; what else differs between the two follows from it.

    Args:
        model_class (`type`): The connector's class.
        plan (`Mapping[str, TensorRecipe]`): From [`plan_connector`].
        overrides (`Mapping[str, Any]`): Arguments that replace inferred ones.

    Returns:
        `dict[str, Any]`

    Raises:
        TypeError: if an override is not an argument of the constructor.
        ValueError: if tensors that determine a size are missing.
    """
    check_overrides(model_class, overrides)
    sized = ("proj_in.weight", "time_embedder.linear_1.weight", "blocks.0.mlp.0.weight", "pooled_proj.weight")
    missing = [key for key in sized if key not in plan]
    if missing:
        raise ValueError(f"Matrices of the connector of Step1X-Edit are missing: {list_keys(missing)}.")
    check_dimensions({key: plan[key].shape for key in sized}, dict.fromkeys(sized, 2))
    (hidden_size, in_channels), (_, frequency_dim), (inner, _), (pooled_dim, _) = (plan[key].shape for key in sized)
    first_version = "pooled_scale" in plan
    return {
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "num_attention_heads": max(1, hidden_size // RELEASED_HEAD_DIM),
        "num_layers": count_blocks(plan, "blocks"),
        "mlp_ratio": inner / hidden_size,
        "pooled_dim": pooled_dim,
        "frequency_dim": frequency_dim,
        "scale_pooled": first_version,
        "timestep_scale": 1.0 if first_version else 1000.0,
        "reference_offset": 0 if first_version else 1,
        **overrides,
    }
