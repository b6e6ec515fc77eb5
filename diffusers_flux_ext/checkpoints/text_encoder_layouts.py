"""The key layouts of FLUX.1's text encoders in single files, and the configs that their shapes imply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .key_tables import KeyTable, plan_by_tables, spelled
from .layouts import Shapes, TensorRecipe
from .messages import list_keys
from .sizes import check_dimensions, count_blocks


# In files that hold all models of FLUX.1.
CLIP_PREFIX, T5_PREFIX = "text_encoders.clip_l.", "text_encoders.t5xxl."
CLIP_PREFIXES = (f"{CLIP_PREFIX}transformer.text_model.", f"{CLIP_PREFIX}transformer.", "text_model.", "")
T5_PREFIXES = (f"{T5_PREFIX}transformer.", "")
CLIP_HEAD_DIM = 64
LINEAR = ("weight", "bias")

# Ours, DiffSynth-Studio's and OpenAI's names of the layers of a block of CLIP.
_CLIP_LAYERS = (
    ("self_attn.out_proj", "attn.to_out", "attn.out_proj"),
    ("layer_norm1", "layer_norm1", "ln_1"),
    ("layer_norm2", "layer_norm2", "ln_2"),
    ("mlp.fc1", "fc1", "mlp.c_fc"),
    ("mlp.fc2", "fc2", "mlp.c_proj"),
)
_CLIP_QKV = tuple((f"self_attn.{part}_proj", f"attn.to_{part}") for part in "qkv")
_BLOCK = "encoder.layers.{}."
_TOKENS, _PLACES, _NORM = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "final_layer_norm",
)
_OWN_ROWS = [(ours, ours) for ours, *_ in _CLIP_LAYERS] + [(ours, ours) for ours, _ in _CLIP_QKV]
_BESIDE_CLIP = ("logit_scale", "text_projection", "embeddings.position_ids", "vision_model.", "visual_projection.")

CLIP_TABLES = (
    KeyTable(
        "transformers",
        {_TOKENS: (_TOKENS,), _PLACES: (_PLACES,)}
        | dict(spelled([(_NORM, _NORM)], LINEAR))
        | dict(spelled(_OWN_ROWS, LINEAR, _BLOCK, _BLOCK)),
        _BESIDE_CLIP,
    ),
    KeyTable(
        "DiffSynth-Studio",
        {"token_embedding.weight": (_TOKENS,), "position_embeds": (_PLACES,)}
        | dict(spelled([(_NORM, _NORM)], LINEAR))
        | dict(spelled([*((row[0], row[1]) for row in _CLIP_LAYERS), *_CLIP_QKV], LINEAR, _BLOCK, "encoders.{}.")),
    ),
    KeyTable(
        "OpenAI",
        {"token_embedding.weight": (_TOKENS,), "positional_embedding": (_PLACES,)}
        | dict(spelled([(_NORM, "ln_final")], LINEAR))
        | dict(spelled([(row[0], row[2]) for row in _CLIP_LAYERS], LINEAR, _BLOCK, "transformer.resblocks.{}."))
        | {
            f"transformer.resblocks.{{}}.attn.in_proj_{kind}": tuple(f"{_BLOCK}{ours}.{kind}" for ours, _ in _CLIP_QKV)
            for kind in LINEAR
        },
        ("visual.", "logit_scale", "text_projection"),
    ),
)

_T5_BLOCK = "encoder.block.{}.layer.{}."
_T5_LAYERS = (
    *(f"SelfAttention.{part}" for part in ("q", "k", "v", "o", "relative_attention_bias")),
    *(f"DenseReluDense.{part}" for part in ("wi_0", "wi_1", "wo")),
    "layer_norm",
)
T5_TABLE = KeyTable(
    "transformers",
    {"shared.weight": ("shared.weight",)}
    | dict(spelled([("encoder.final_layer_norm", "encoder.final_layer_norm")], ["weight"]))
    | dict(spelled([(name, name) for name in _T5_LAYERS], ["weight"], _T5_BLOCK, _T5_BLOCK)),
    ("decoder.", "lm_head.", "encoder.embed_tokens.", "logit_scale"),
)


def plan_clip_text(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of CLIP's text model are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in the layout of transformers, OpenAI or DiffSynth-Studio. The image model of a whole CLIP
            and what projects to it are left out.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `CLIPTextModel`, without its prefix `text_model.`.

    Raises:
        ValueError: if it is another model, or a key is unknown.
    """
    beside = (f"{CLIP_PREFIX}logit_scale", f"{CLIP_PREFIX}transformer.text_projection", *_BESIDE_CLIP)
    inside = {key: shape for key, shape in shapes.items() if not key.startswith(beside)}
    return plan_by_tables("CLIP's text model", inside, CLIP_TABLES, CLIP_PREFIXES)


def plan_t5(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of T5's encoder are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key. The decoder of a whole T5 is left out.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `T5EncoderModel` but the second name of its embedding.

    Raises:
        ValueError: if it is another model, a key is unknown, or weights are scaled 8-bit numbers.
    """
    scaled = [key for key in shapes if key.endswith((".scale_weight", ".scale_input", "scaled_fp8"))]
    if scaled:
        raise ValueError(
            f"The file holds scaled 8-bit weights ({list_keys(scaled)}), which are not read. Pass the file in 16 "
            f"bits, or in plain 8 bits."
        )
    inside = {key: shape for key, shape in shapes.items() if key != f"{T5_PREFIX}logit_scale"}
    if "shared.weight" not in inside and "encoder.embed_tokens.weight" in inside:
        inside["shared.weight"] = inside.pop("encoder.embed_tokens.weight")
        plan = plan_by_tables("T5's encoder", inside, [T5_TABLE])
        return plan | {"shared.weight": TensorRecipe(("encoder.embed_tokens.weight",), plan["shared.weight"].shape)}
    return plan_by_tables("T5's encoder", inside, [T5_TABLE], T5_PREFIXES)


def infer_clip_text_config(plan: Mapping[str, TensorRecipe]) -> dict[str, Any]:
    """Infer the arguments of `CLIPTextConfig` from a plan; heads are 64 wide, as released.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_clip_text`].

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing.
    """
    sized = (_TOKENS, _PLACES, "encoder.layers.0.mlp.fc1.weight")
    vocabulary, width = _matrix(plan, sized[0], "CLIP's text model")
    places = [size for size in _shape(plan, sized[1], "CLIP's text model") if size != 1]
    inner, _ = _matrix(plan, sized[2], "CLIP's text model")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": count_blocks(plan, "encoder.layers"),
        "num_attention_heads": max(1, width // CLIP_HEAD_DIM),
        "max_position_embeddings": places[0],
        "hidden_act": "quick_gelu",
        # The released value, with which transformers takes the token of the largest id as the end.
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }


def infer_t5_config(plan: Mapping[str, TensorRecipe]) -> dict[str, Any]:
    """Infer the arguments of `T5Config` from a plan, for the gated T5 v1.1.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_t5`].

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing.
    """
    first = "encoder.block.0.layer."
    vocabulary, width = _matrix(plan, "shared.weight", "T5's encoder")
    buckets, heads = _matrix(plan, f"{first}0.SelfAttention.relative_attention_bias.weight", "T5's encoder")
    attention, _ = _matrix(plan, f"{first}0.SelfAttention.q.weight", "T5's encoder")
    inner, _ = _matrix(plan, f"{first}1.DenseReluDense.wi_0.weight", "T5's encoder")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": attention // heads,
        "d_ff": inner,
        "num_heads": heads,
        "num_layers": count_blocks(plan, "encoder.block"),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    }


def _shape(plan: Mapping[str, TensorRecipe], key: str, what: str) -> tuple[int, ...]:
    if key not in plan:
        raise ValueError(f"The file of {what} is not complete: `{key}` is missing.")
    return plan[key].shape


def _matrix(plan: Mapping[str, TensorRecipe], key: str, what: str) -> tuple[int, int]:
    shape = _shape(plan, key, what)
    check_dimensions({key: shape}, {key: 2})
    return shape[0], shape[1]
