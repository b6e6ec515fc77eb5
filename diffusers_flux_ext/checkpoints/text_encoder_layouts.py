"""The key layouts of FLUX.1's text encoders in single files, and the configs that their shapes imply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .key_tables import KeyTable, find_prefixes, plan_by_tables, sized, spelled
from .layouts import Shapes, TensorRecipe
from .sizes import count_blocks


# In files that hold all models of FLUX.1.
CLIP_PREFIX, T5_PREFIX = "text_encoders.clip_l.", "text_encoders.t5xxl."
CLIP, T5 = "CLIP's text model", "T5's encoder"
# Both published models have heads of this width; it leaves no trace in CLIP's weights.
CLIP_HEAD_DIM = 64
T5_BUCKETS, T5_DISTANCE = 32, 128
EMBEDDING = {"encoder.embed_tokens.weight": "shared.weight"}
"""T5's table of embeddings has two names."""

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
# One for each layout.
_CLIP_MARKS = (_TOKENS, "position_embeds", "ln_final.weight")
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
    *(f"DenseReluDense.{part}" for part in ("wi", "wi_0", "wi_1", "wo")),
    "layer_norm",
)
# llama.cpp's names, which GGUF files have.
_LLAMA_CPP_LAYERS = (
    *((f"layer.0.SelfAttention.{part}", f"attn_{part}") for part in "qkvo"),
    ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
    ("layer.0.layer_norm", "attn_norm"),
    ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
    ("layer.1.DenseReluDense.wi_1", "ffn_up"),
    ("layer.1.DenseReluDense.wo", "ffn_down"),
    ("layer.1.layer_norm", "ffn_norm"),
)
_SHARED, _T5_NORM = "shared", "encoder.final_layer_norm"
_T5_MARKS = ("encoder.block.0.layer.0.SelfAttention.q.weight", "enc.blk.0.attn_q.weight")
T5_TABLES = (
    KeyTable(
        "transformers",
        dict(spelled([(_SHARED, _SHARED), (_SHARED, "encoder.embed_tokens"), (_T5_NORM, _T5_NORM)], ["weight"]))
        | dict(spelled([(name, name) for name in _T5_LAYERS], ["weight"], _T5_BLOCK, _T5_BLOCK)),
        ("decoder.", "lm_head.", "logit_scale"),
    ),
    KeyTable(
        "llama.cpp",
        dict(spelled([(_SHARED, "token_embd"), (_T5_NORM, "enc.output_norm")], ["weight"]))
        | dict(spelled(_LLAMA_CPP_LAYERS, ["weight"], "encoder.block.{}.", "enc.blk.{}.")),
        ("dec.", "output."),
    ),
)


def has_clip(keys: Iterable[str]) -> bool:
    """Whether there is a CLIP text model among the tensors of a file, by their keys."""
    return bool(find_prefixes(keys, _CLIP_MARKS))


def has_t5(keys: Iterable[str]) -> bool:
    """Whether there is a T5 encoder among the tensors of a file, by their keys."""
    return bool(find_prefixes(keys, _T5_MARKS))


def plan_clip_text(shapes: Shapes, prefix: str | None = None) -> dict[str, TensorRecipe]:
    """Plan how the tensors of CLIP's text model are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in the layout of transformers, OpenAI or DiffSynth-Studio, after any prefix. The image model
            of a whole CLIP and what projects to it are left out.
        prefix (`str`, *optional*): What stands before the keys, where a file holds several text models.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `CLIPTextModel`, without its prefix `text_model.`.

    Raises:
        ValueError: if it is another model, there are several, or a key is unknown.
    """
    return plan_by_tables(CLIP, shapes, CLIP_TABLES, _CLIP_MARKS, prefix)


def plan_t5(shapes: Shapes, prefix: str | None = None) -> dict[str, TensorRecipe]:
    """Plan how the tensors of T5's encoder are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in the layout of transformers or llama.cpp, after any prefix. The decoder of a whole T5 is
            left out.
        prefix (`str`, *optional*): What stands before the keys, where a file holds several encoders.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `T5EncoderModel` but the second name of its embedding.

    Raises:
        ValueError: if it is another model, there are several, or a key is unknown.
    """
    return plan_by_tables(T5, shapes, T5_TABLES, _T5_MARKS, prefix)


def infer_clip_text_config(plan: Mapping[str, TensorRecipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the arguments of `CLIPTextConfig` from a plan.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_clip_text`].
        given (`Mapping[str, Any]`): Arguments that replace inferred ones.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing, or the heads are not 64 wide and their number is not
            given.
    """
    (vocabulary, width), (places, _), (inner, _) = sized(
        CLIP, plan, {_TOKENS: 2, _PLACES: 2, "encoder.layers.0.mlp.fc1.weight": 2}
    )
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": count_blocks(plan, "encoder.layers"),
        "num_attention_heads": None if width % CLIP_HEAD_DIM else width // CLIP_HEAD_DIM,
        "max_position_embeddings": places,
        "hidden_act": "quick_gelu",
        # The released value, with which transformers takes the token of the largest id as the end.
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
        **given,
    }
    if not config["num_attention_heads"]:
        raise ValueError(
            f"{CLIP} is {width} wide, which heads of {CLIP_HEAD_DIM} do not fill, and their number leaves no trace in "
            "the weights. Pass `num_attention_heads`, or keep the model's `config.json` beside the file."
        )
    return config


def infer_t5_config(plan: Mapping[str, TensorRecipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the arguments of `T5Config` from a plan.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_t5`].
        given (`Mapping[str, Any]`): Arguments that replace inferred ones.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing, or the number of buckets of distances is not the
            released one and `relative_attention_max_distance` is not given.
    """
    first = "encoder.block.0.layer."
    plain = f"{first}1.DenseReluDense.wi.weight"
    wide = plain if plain in plan else f"{first}1.DenseReluDense.wi_0.weight"
    bias, queries = (f"{first}0.SelfAttention.{name}.weight" for name in ("relative_attention_bias", "q"))
    (vocabulary, width), (buckets, heads), (attention, _), (inner, _) = sized(
        T5, plan, {"shared.weight": 2, bias: 2, queries: 2, wide: 2}
    )
    config = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": attention // heads,
        "d_ff": inner,
        "num_heads": heads,
        "num_layers": count_blocks(plan, "encoder.block"),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": T5_DISTANCE if buckets == T5_BUCKETS else None,
        "feed_forward_proj": "relu" if wide == plain else "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
        **given,
    }
    if not config["relative_attention_max_distance"]:
        raise ValueError(
            f"{T5} has {buckets} buckets of distances, the published ones {T5_BUCKETS}; how far the last one reaches "
            "leaves no trace in the weights. Pass `relative_attention_max_distance`, or keep the model's "
            "`config.json` beside the file."
        )
    return config
