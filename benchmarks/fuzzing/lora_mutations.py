"""Mutations that only LoRA files have: PEFT's config in the header, and alphas."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from .raw import Mutation
from .safetensors_files import join, split


HEADER = "lora_adapter_metadata"
PATTERNS = (
    "(a+)+$", "(.*)*x", "(a|a)*b", "(?i)to_q", "(?P<x>to_q)", "a{1,99999}", "(to_q{200}){200}", "(" * 5000, "\\1", "[",
    "to_q" * 5000, "(?=to_q)to_q", "^transformer_blocks\\.\\d+\\.attn\\.to_q", "to_q|to_k", "", ".*" * 400, "\\", "*",
    "[^.]+", "(((((((((((((((((((((((((a)))))))))))))))))))))))))", "x{0,256}" * 200, "\x00", "²",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (0, -1, 1e300, 1e-300, 2**64, 10**4000, 4.5, True, None, "4", [], {}, 16)
ALPHAS = (0.0, -1.0, 1e300, 1e-300, 1e30, 6e4, float("nan"), float("inf"), -float("inf"))


def edit_patterns(data: bytes, rng: Random) -> bytes:
    """Give the header, as PEFT writes it, other patterns or numbers."""
    header, body = split(data)
    metadata = header.get("__metadata__") or {}
    entries = json.loads(metadata.get(HEADER, '{"transformer.r": 4, "transformer.lora_alpha": 4}'))
    table = f"transformer.{rng.choice(('rank_pattern', 'alpha_pattern'))}"
    edit = rng.randrange(4)
    if edit == 0:
        entries[rng.choice(sorted(entries))] = rng.choice(NUMBERS)
    elif edit == 1:
        entries[table] = {rng.choice(PATTERNS): rng.choice(NUMBERS) for _ in range(rng.randint(1, 5))}
    elif edit == 2:
        entries[table] = {rng.choice(PATTERNS) + str(i): 4 for i in range(rng.choice((10, 1000)))}
    else:
        entries = {name.partition(".")[2]: value for name, value in entries.items()}
    # Python does not format integers of thousands of digits.
    text = json.dumps(entries).replace("true", rng.choice(("true", "9" * 5000)))
    header["__metadata__"] = {**metadata, HEADER: text}
    return join(json.dumps(header).encode(), body)


def edit_alpha(data: bytes, rng: Random) -> bytes:
    """Give one layer, or all, an alpha of any value, type and shape."""
    tensors = load(data)
    layers = sorted({key.partition(".lora_")[0] for key in tensors if ".lora_" in key} or tensors)
    found = [key for key in tensors if key.endswith(".alpha")] or [f"{layer}.alpha" for layer in layers]
    dtype = rng.choice((torch.float64, torch.float64, torch.float32, torch.float16, torch.int64, torch.float8_e4m3fn))
    shape = rng.choice(((), (), (1,), (2,), (0,)))
    value = rng.choice(ALPHAS)
    chosen = found if rng.random() < 0.5 else [rng.choice(sorted(found))]
    # Whole numbers hold neither NaN nor 1e300.
    value = value if dtype.is_floating_point else max(-9e9, min(9e9, value)) if value == value else 1.0
    tensors.update({key: torch.full(shape, value, dtype=torch.float64).to(dtype) for key in chosen})
    header, _ = split(data)
    return save(tensors, {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()})


def mix_dtypes(data: bytes, rng: Random) -> bytes:
    """Store every tensor in a data type of its own."""
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
             torch.int8, torch.uint8, torch.int64, torch.bool)  # fmt: skip
    share = rng.choice((2, 5, len(kinds)))
    header, _ = split(data)
    metadata = {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}
    return save({key: tensor.to(rng.choice(kinds[-share:] if share == 5 else kinds[:share + 4]))
                 for key, tensor in load(data).items()}, metadata)  # fmt: skip


LORA: tuple[Mutation, ...] = (edit_patterns, edit_alpha, mix_dtypes)
