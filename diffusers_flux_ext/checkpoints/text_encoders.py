"""Readers of FLUX.1's text encoders, CLIP and T5, from single files in any layout, at any width and depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .messages import list_keys, naming
from .model_configs import check_numbers
from .packed import fill_packed, keep_packed
from .sizes import check_dimensions, count_blocks
from .tensors import Tensors, config_beside, fill_from, open_tensors


# Both published models have heads of this width; it leaves no trace in CLIP's weights.
CLIP_HEAD = 64
T5_BUCKETS, T5_DISTANCE = 32, 128
_CLIP_ROOTS = ("embeddings.", "encoder.", "final_layer_norm.")
_CLIP_TOKENS, _CLIP_POSITIONS = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
_CLIP_IGNORED = frozenset({"embeddings.position_ids"})
# The former place of the text model's parts in `CLIPTextModel`, and still that of files.
_TEXT_MODEL = "text_model."
_T5_BLOCK = "encoder.block.0.layer.{}."
_T5_MARK = _T5_BLOCK.format(0) + "SelfAttention.q.weight"
_T5_BIAS = _T5_BLOCK.format(0) + "SelfAttention.relative_attention_bias.weight"
_T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
_T5_WIDE = tuple(_T5_BLOCK.format(1) + f"DenseReluDense.{name}.weight" for name in ("wi_0", "wi"))
_LLAMA_CPP_MARK = "enc.blk.0.attn_q.weight"
# llama.cpp's names of T5 in GGUF files.
_LLAMA_CPP = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_LLAMA_CPP_OTHERS = {
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
}


def has_clip(keys: Any) -> bool:
    """Whether there is a CLIP text model among the tensors of a file, by their keys."""
    return bool(_prefixes(keys, _CLIP_TOKENS))


def has_t5(keys: Any) -> bool:
    """Whether there is a T5 encoder among the tensors of a file, by their keys."""
    return bool(_prefixes(keys, _T5_MARK) or _prefixes(keys, _LLAMA_CPP_MARK))


def read_clip(
    source: str | Path | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    prefix: str | None = None,
    **overrides: Any,
) -> CLIPTextModel:
    """Read a CLIP text model from a single file, alone or beside other models.

    The names of transformers are recognised after any prefix: none, `text_model.`,
    `text_encoders.clip_l.transformer.text_model.` of ComfyUI, `cond_stage_model.transformer.text_model.` and so on.
    Sizes follow from the shapes; what does not (`num_attention_heads`) is read from a `config.json` beside the file,
    or is that of CLIP large.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*):
            Data type of the model; by default that of each tensor, or bfloat16 if some are in eight bits or fewer.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        prefix (`str`, *optional*):
            What stands before the keys, where a file holds several text models.
        overrides:
            Entries of `CLIPTextConfig` that replace the inferred ones, such as `num_attention_heads=2`.

    Returns:
        `CLIPTextModel`: in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no CLIP text model in it or more than one, if keys are missing or shapes do not fit
            together, or if the heads are not 64 wide and `num_attention_heads` is not known.
    """
    with naming(source), open_tensors(source) as tensors:
        found = _clip_tensors(tensors, prefix)
        config = _clip_config(found, {**config_beside(source, ("clip", "clip_text_model")), **overrides})
        model = _build(CLIPTextModel, CLIPTextConfig, config)
        names = {key: key.removeprefix(_TEXT_MODEL) for key in model.state_dict()}
        _check_keys(found.shapes, set(names.values()), "CLIP text model")
        return fill_from(model, found.select(names), torch_dtype, device)


def read_t5(
    source: str | Path | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization_config: Any = None,
    prefix: str | None = None,
    **overrides: Any,
) -> T5EncoderModel:
    """Read the encoder of T5 from a single file, alone or beside other models.

    The names of transformers are recognised after any prefix, such as ComfyUI's `text_encoders.t5xxl.transformer.`,
    and those of llama.cpp, which GGUF files have. Sizes follow from the shapes; what does not
    (`relative_attention_max_distance`) is read from a `config.json` beside the file, or is that of the published
    models. A decoder in the file is left out.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors or GGUF file, a folder or index of several, a pickle of tensors only, or a state dict.
        torch_dtype (`torch.dtype`, *optional*):
            Data type of the model; by default that of each tensor, or bfloat16 if some are in eight bits or fewer.
        device (`str` or `torch.device`, *optional*):
            Device of the model; CPU by default.
        quantization_config (`diffusers.GGUFQuantizationConfig`, *optional*):
            Keep the weights of a GGUF file packed, and compute in its `compute_dtype`. They are unpacked by default.
        prefix (`str`, *optional*):
            What stands before the keys, where a file holds several encoders.
        overrides:
            Entries of `T5Config` that replace the inferred ones.

    Returns:
        `T5EncoderModel`: in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no T5 encoder in it or more than one, if keys are missing or shapes do not fit
            together, if the number of buckets is not 32 and `relative_attention_max_distance` is not known, or if
            `quantization_config` is not one for GGUF or the file is not one.
    """
    with naming(source), open_tensors(source) as tensors:
        found = _t5_tensors(tensors, prefix)
        config = _t5_config(found.shapes, {**config_beside(source, ("t5",)), **overrides})
        model = _build(T5EncoderModel, T5Config, config)
        _check_keys(found.shapes, set(model.state_dict()), "T5 encoder")
        packed: frozenset[str] = frozenset()
        if quantization_config is not None:
            packed = keep_packed(model, found, quantization_config)
            torch_dtype = torch_dtype or quantization_config.compute_dtype
        fill_from(model, found, torch_dtype, device, packed)
        fill_packed(model, found, packed, device)
        # One table of embeddings under two names.
        model.encoder.embed_tokens.weight = model.shared.weight
        return model


def _prefixes(keys: Any, mark: str) -> list[str]:
    return sorted({key.removesuffix(mark) for key in keys if key == mark or key.endswith(f".{mark}")})


def _choose(found: list[str], prefix: str | None, what: str, keys: Any) -> str:
    if prefix is not None:
        found = [each for each in found if each.startswith(prefix)]
    if not found:
        raise ValueError(f"There is no {what} among the keys {list_keys(keys)}.")
    if len(found) > 1:
        raise ValueError(f"There are several of a {what}, with the prefixes {found}. Pass `prefix=` with one of them.")
    return found[0]


def _clip_tensors(tensors: Tensors, prefix: str | None) -> Tensors:
    start = _choose(_prefixes(tensors.shapes, _CLIP_TOKENS), prefix, "CLIP text model", tensors.shapes)
    below = {key.removeprefix(start): key for key in tensors.shapes if key.startswith(start)}
    names = {new: old for new, old in below.items() if new.startswith(_CLIP_ROOTS) and new not in _CLIP_IGNORED}
    return tensors.select(names)


def _t5_tensors(tensors: Tensors, prefix: str | None) -> Tensors:
    keys = tensors.shapes
    if _prefixes(keys, _LLAMA_CPP_MARK):
        start = _choose(_prefixes(keys, _LLAMA_CPP_MARK), prefix, "T5 encoder", keys)
        names = {_from_llama_cpp(key.removeprefix(start)): key for key in keys if key.startswith(start)}
    else:
        start = _choose(_prefixes(keys, _T5_MARK), prefix, "T5 encoder", keys)
        names = {key.removeprefix(start): key for key in keys if key.startswith(start)}
    names = {new: old for new, old in names.items() if new.startswith(("encoder.", "shared."))}
    # Files hold the table of embeddings under either name or both.
    table = next((names[key] for key in _T5_TABLES if key in names), None)
    return tensors.select(names if table is None else {**names, **dict.fromkeys(_T5_TABLES, table)})


def _from_llama_cpp(key: str) -> str:
    block = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", key)
    if block and block[2] in _LLAMA_CPP:
        return f"encoder.block.{block[1]}.{_LLAMA_CPP[block[2]]}.weight"
    return _LLAMA_CPP_OTHERS.get(key, key)


def _clip_config(tensors: Tensors, given: Mapping[str, Any]) -> dict[str, Any]:
    shapes = tensors.shapes
    wide = "encoder.layers.0.mlp.fc1.weight"
    _require(shapes, {_CLIP_TOKENS: 2, _CLIP_POSITIONS: 2, wide: 2}, "CLIP text model")
    vocabulary, width = shapes[_CLIP_TOKENS]
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[wide][0],
        "num_hidden_layers": count_blocks(shapes, "encoder.layers"),
        "num_attention_heads": None if width % CLIP_HEAD else width // CLIP_HEAD,
        "max_position_embeddings": shapes[_CLIP_POSITIONS][0],
        "hidden_act": "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": None,
        **given,
    }
    if not config["num_attention_heads"]:
        raise ValueError(
            f"The CLIP text model is {width} wide, which heads of {CLIP_HEAD} do not fill, and their number leaves no "
            "trace in the weights. Pass `num_attention_heads`, or keep the model's `config.json` beside the file."
        )
    return config


def _t5_config(shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> dict[str, Any]:
    wide = next((key for key in _T5_WIDE if key in shapes), _T5_WIDE[0])
    _require(shapes, {"shared.weight": 2, _T5_MARK: 2, _T5_BIAS: 2, wide: 2}, "T5 encoder")
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[_T5_BIAS]
    config = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[_T5_MARK][0] // heads,
        "d_ff": shapes[wide][0],
        "num_layers": count_blocks(shapes, "encoder.block"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": T5_DISTANCE if buckets == T5_BUCKETS else None,
        "feed_forward_proj": "gated-gelu" if wide == _T5_WIDE[0] else "relu",
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        **given,
    }
    if not config["relative_attention_max_distance"]:
        raise ValueError(
            f"The T5 encoder has {buckets} buckets of distances, the published ones {T5_BUCKETS}; how far the last "
            "one reaches leaves no trace in the weights. Pass `relative_attention_max_distance`, or keep the model's "
            "`config.json` beside the file."
        )
    return config


def _require(shapes: Mapping[str, tuple[int, ...]], dimensions: Mapping[str, int], what: str) -> None:
    missing = [key for key in dimensions if key not in shapes]
    if missing:
        raise ValueError(f"Keys of a {what} are missing: {list_keys(missing)}.")
    check_dimensions(shapes, dimensions)


def _check_keys(found: Mapping[str, Any], expected: set[str], what: str) -> None:
    expected = {key.removeprefix(_TEXT_MODEL) for key in expected}
    missing, surplus = expected - found.keys(), found.keys() - expected
    if missing or surplus:
        problem = f"lacks {list_keys(missing)}" if missing else f"has no place for {list_keys(surplus)}"
        raise ValueError(f"The {what} of this file {problem}.")


def _build(model_class: Any, config_class: Any, config: Mapping[str, Any]) -> Any:
    check_numbers(config)
    ignored = ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype")
    settings = {name: value for name, value in config.items() if name not in ignored}
    # Buffers such as CLIP's position ids are not in files.
    with init_empty_weights(include_buffers=False):
        return model_class(config_class(**settings))
