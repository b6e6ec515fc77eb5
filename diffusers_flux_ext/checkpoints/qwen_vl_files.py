"""Qwen2.5-VL in single files or shards without a config: the names of today's transformers, and the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layouts import Shapes, TensorRecipe
from .messages import list_keys
from .sizes import check_dimensions, count_blocks


HEAD_DIM = 128
VISION_HEADS = 16
_TEXT, _VISION = "model.language_model.", "model.visual."
_SIZED = {
    f"{_TEXT}embed_tokens.weight": 2,
    f"{_TEXT}layers.0.self_attn.q_proj.weight": 2,
    f"{_TEXT}layers.0.self_attn.k_proj.weight": 2,
    f"{_TEXT}layers.0.mlp.gate_proj.weight": 2,
    f"{_VISION}patch_embed.proj.weight": 5,
    f"{_VISION}blocks.0.mlp.gate_proj.weight": 2,
    f"{_VISION}merger.mlp.2.weight": 2,
}
# Ids of the released tokenizer.
TOKENS = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_VISION_SETTINGS = {
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "spatial_merge_size": 2,
    "tokens_per_second": 2,
}


def plan_qwen_vl(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of Qwen2.5-VL are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key, with the names of transformers 4 or 5.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `Qwen2_5_VLForConditionalGeneration`.

    Raises:
        ValueError: if it is another model.
    """
    plan = {_rename(key): TensorRecipe((key,), tuple(shape)) for key, shape in shapes.items()}
    missing = [key for key in _SIZED if key not in plan]
    if missing:
        raise ValueError(f"This is not a whole Qwen2.5-VL: {list_keys(missing)} are missing.")
    return plan


def _rename(key: str) -> str:
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith((_TEXT, _VISION)):
        return _TEXT + key.removeprefix("model.")
    return key


def infer_qwen_vl_config(plan: Mapping[str, TensorRecipe]) -> dict[str, Any]:
    """Infer the arguments of `Qwen2_5_VLConfig` from a plan; what leaves no trace in the shapes is as released.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_qwen_vl`].

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors have a wrong number of dimensions.
    """
    check_dimensions({key: plan[key].shape for key in _SIZED}, _SIZED)
    table, queries, keys, gate, patch, seen, merged = (plan[key].shape for key in _SIZED)
    text = {
        "vocab_size": table[0],
        "hidden_size": table[1],
        "intermediate_size": gate[0],
        "num_hidden_layers": count_blocks(plan, f"{_TEXT}layers"),
        "num_attention_heads": queries[0] // HEAD_DIM,
        "num_key_value_heads": keys[0] // HEAD_DIM,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "bos_token_id": TOKENS["bos_token_id"],
        "eos_token_id": TOKENS["eos_token_id"],
    }
    vision = {
        **_VISION_SETTINGS,
        "depth": count_blocks(plan, f"{_VISION}blocks"),
        "hidden_size": patch[0],
        "intermediate_size": seen[0],
        "num_heads": VISION_HEADS,
        "out_hidden_size": merged[0],
        "in_channels": patch[1],
        "temporal_patch_size": patch[2],
        "patch_size": patch[3],
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False, **TOKENS}
