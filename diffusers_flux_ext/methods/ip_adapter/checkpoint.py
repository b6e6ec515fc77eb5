"""The published layouts of FLUX.1 IP-Adapters, recognised by structure, and the config that shapes imply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...checkpoints.messages import list_keys
from ...checkpoints.sizes import check_dimensions, count_blocks


NestedStateDict = Mapping[str, Any]
RELEASED_HEAD_DIM = 128

# Key prefixes in some layout, and in ours: InstantX' and diffusers' (nested, or flat
# with dots), DiffSynth-Studio's, XLabs'.
PREFIXES: tuple[tuple[str, str], ...] = (
    (r"image_proj\.", "image_proj."),
    (r"ip_adapter\.(?=\d+\.)", "ip_adapter."),
    (r"ipadapter_modules\.(?=\d+\.)", "ip_adapter."),
    (r"ip_adapter_proj_model\.", "image_proj."),
    (r"double_blocks\.(?=\d+\.)", "ip_adapter."),
)
RENAMED: tuple[tuple[str, str], ...] = (
    (r"\.processor\.ip_adapter_double_stream_k_proj\.", ".to_k_ip."),
    (r"\.processor\.ip_adapter_double_stream_v_proj\.", ".to_v_ip."),
)
KNOWN = re.compile(r"image_proj\.(proj|proj\.[02]|norm)\.(weight|bias)|ip_adapter\.\d+\.to_[kv]_ip\.(weight|bias)")


def convert_ip_adapter_state_dict(state_dict: NestedStateDict) -> dict[str, torch.Tensor]:
    """Rename the weights of an IP-Adapter in any published layout to those of [`FluxIPAdapter`].

    Args:
        state_dict (`Mapping`):
            Nested (`{"image_proj": {...}, "ip_adapter": {...}}`, InstantX and diffusers) or flat (the same with dots,
            XLabs, DiffSynth-Studio, or this package's own). Not changed; the tensors are shared.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        ValueError: If a key belongs to no known layout, or two keys become one.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for key, tensor in _flatten(state_dict).items():
        name = _rename(key)
        if name is None:
            unknown.append(key)
        elif name in renamed:
            raise ValueError(f"Two keys of the file mean `{name}`. Keep the weights of one adapter only.")
        else:
            renamed[name] = tensor
    if unknown or not renamed:
        raise ValueError(
            f"Keys that no FLUX.1 IP-Adapter has: {list_keys(unknown)}. Expected `image_proj.*` with `ip_adapter.*` "
            "(InstantX, diffusers), `ip_adapter_proj_model.*` with `double_blocks.*` (XLabs) or `ipadapter_modules.*` "
            "(DiffSynth-Studio)."
        )
    return renamed


def infer_ip_adapter_config(shapes: Mapping[str, tuple[int, ...]], **overrides: Any) -> dict[str, Any]:
    """Return the config of the [`FluxIPAdapter`] that weights belong to.

    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Shapes by key, as [`convert_ip_adapter_state_dict`] names them.
        overrides:
            Entries that replace inferred ones. The width of heads cannot be read from the weights; 128 is assumed.

    Returns:
        `dict[str, Any]`: arguments of the constructor.

    Raises:
        ValueError: If tensors are missing, or the structure is neither InstantX' nor XLabs'.
    """
    is_mlp, has_bias = "image_proj.proj.0.weight" in shapes, "ip_adapter.0.to_k_ip.bias" in shapes
    first = "image_proj.proj.0.weight" if is_mlp else "image_proj.proj.weight"
    last = "image_proj.proj.2.weight" if is_mlp else "image_proj.proj.weight"
    needed = (first, last, "image_proj.norm.weight", "ip_adapter.0.to_k_ip.weight")
    missing = [key for key in needed if key not in shapes]
    if missing:
        raise ValueError(f"The weights of the IP-Adapter are incomplete; these are missing: {list_keys(missing)}.")
    if is_mlp == has_bias:
        raise ValueError(
            f"The IP-Adapter projects images with {'an MLP' if is_mlp else 'one Linear'} and its blocks have "
            f"{'biases' if has_bias else 'no biases'}. InstantX' has an MLP and no biases, XLabs' one Linear and "
            "biases; how another one is applied cannot be told from its weights."
        )
    check_dimensions(shapes, {**dict.fromkeys(needed, 2), "image_proj.norm.weight": 1})
    inner_dim, cross_attention_dim = shapes["ip_adapter.0.to_k_ip.weight"]
    head_dim = overrides.get("attention_head_dim", RELEASED_HEAD_DIM)
    return {
        "num_blocks": count_blocks(shapes, "ip_adapter"),
        "attention_head_dim": head_dim,
        "num_attention_heads": max(inner_dim // head_dim, 1),
        "cross_attention_dim": cross_attention_dim,
        "image_embed_dim": shapes[first][1],
        "num_tokens": shapes[last][0] // shapes["image_proj.norm.weight"][0],
        "image_proj_type": "mlp" if is_mlp else "linear",
        "kv_bias": has_bias,
        "key_norm_eps": 1e-5 if is_mlp else None,
        "after_block": not is_mlp,
        **overrides,
    }


def _flatten(state_dict: NestedStateDict) -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for key, value in state_dict.items():
        parts = {f"{key}.{name}": tensor for name, tensor in value.items()} if isinstance(value, Mapping) else {}
        flat.update(parts or {key: value})
    wrong = [key for key, value in flat.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
    if wrong:
        raise ValueError(f"The state dict holds other things than tensors: {list_keys(wrong)}.")
    return flat


def _rename(key: str) -> str | None:
    for pattern, prefix in PREFIXES:
        name, found = re.subn(f"^{pattern}", prefix, key)
        if found:
            for old, new in RENAMED:
                name = re.sub(old, new, name)
            return name if KNOWN.fullmatch(name) else None
    return None
