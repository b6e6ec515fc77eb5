"""Mutations of safetensors files: of the header as text, and of the tensors in a valid file."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from .jsons import edit_json, edit_key


DTYPES = (
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I32", "I16", "I8", "U64", "U32", "U16",
    "U8", "BOOL", "C64", "X", "f32", "",
)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    [],
    [0], [-1], [2**63], [10**30], [2**32, 2**32], [10**12, 0], [1.5], ["4"], [[4]], None, "4", {}, [1] * 70, [True],
)  # fmt: skip
LENGTHS = (0, 1, 7, 8, 2**31, 2**40, 2**63, 2**64 - 1)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: bytes, body: bytes) -> bytes:
    """Return a file of a header and the tensors' bytes."""
    return len(header).to_bytes(8, "little") + header + body


def edit_header(data: bytes, rng: Random) -> bytes:
    """Change one place of the header, of any kind."""
    header, body = split(data)
    return join(edit_json(json.dumps(header).encode(), rng), body)


def edit_entry(data: bytes, rng: Random) -> bytes:
    """Change the data type, the shape or the offsets of a tensor."""
    header, body = split(data)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    start, stop = entry["data_offsets"]
    offsets = ([stop, start], [start, stop + 8], [-8, stop], [0, 2**62], [0, 0], [start], [start, stop, stop], None)
    field, values = rng.choice((("dtype", DTYPES), ("shape", SHAPES), ("data_offsets", offsets)))
    entry[field] = rng.choice(values)
    if field == "shape" and rng.random() < 0.3:
        entry["data_offsets"] = [start, start]
    return join(json.dumps(header).encode(), body)


def edit_length(data: bytes, rng: Random) -> bytes:
    """Let the header claim another length."""
    length = int.from_bytes(data[:8], "little")
    claimed = rng.choice((*LENGTHS, length - 1, length + 1, len(data), len(data) - 8))
    return max(claimed, 0).to_bytes(8, "little") + data[8:]


def edit_metadata(data: bytes, rng: Random) -> bytes:
    """Change what the file says about itself."""
    header, body = split(data)
    values: tuple[Any, ...] = (None, 3, [], {"a": 1}, {"a": None}, {"format": "tf"}, {"x": "y" * 10**6}, {"": ""})
    metadata = header.get("__metadata__") or {"format": "pt"}
    if rng.random() < 0.5:
        edited: Any = json.loads(json.dumps(metadata))
        edited[rng.choice(sorted(edited))] = rng.choice(
            ("", "{", "[]", "NaN", "1e400", "9" * 5000, "{" * 5000, "null")
        )
        values = (edited,)
    header["__metadata__"] = rng.choice(values)
    return join(json.dumps(header).encode(), body)


def many_entries(data: bytes, rng: Random) -> bytes:
    """Add thousands of empty tensors."""
    header, body = split(data)
    end = len(body)
    name = rng.choice(sorted(header))
    for index in range(5000):
        header[f"{name}.{index}"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    return join(json.dumps(header).encode(), body)


def edit_tensors(data: bytes, rng: Random) -> bytes:
    """Return a valid file of changed tensors."""
    header, _ = split(data)
    tensors = edit_state_dict(load(data), rng)
    return save(tensors, {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()})


def edit_state_dict(tensors: dict[str, torch.Tensor], rng: Random) -> dict[str, torch.Tensor]:
    """Change a name, a data type, a shape or the values of one tensor or of all."""
    changed = {key: tensor.clone() for key, tensor in tensors.items()}
    if not changed:
        return changed
    edit = rng.choice((_rename, _drop, _cast, _cast_all, _reshape, _spoil, _prefix, _add))
    edit(changed, rng.choice(sorted(changed)), rng)
    return changed


def _rename(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    tensors[edit_key(key, rng)] = tensors.pop(key)


def _drop(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    del tensors[key]


_CASTS = (
    torch.int8, torch.uint8, torch.int64, torch.bool, torch.float64, torch.float16, torch.bfloat16, torch.complex64,
    torch.float8_e4m3fn, torch.uint16,
)  # fmt: skip


def _cast(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    tensors[key] = tensors[key].to(rng.choice(_CASTS))


def _cast_all(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    dtype = rng.choice(_CASTS)
    tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})


def _reshape(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    tensor = tensors[key]
    shapes = ((0,), (), (1,), (1, 1), (0, 10**6), (10**6, 0), (3, 5), (1, 2, 3), (1,) * 9)
    tensors[key] = tensor.flatten() if rng.random() < 0.2 else torch.zeros(rng.choice(shapes), dtype=tensor.dtype)


def _spoil(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    tensor = tensors[key]
    if tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf"), -float("inf"), 6e4))


def _prefix(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    prefix = rng.choice(("module.", "transformer.", "model.diffusion_model.", "base_model.model.", "x"))
    renamed = {prefix + name: tensor for name, tensor in tensors.items()}
    tensors.clear()
    tensors.update(renamed)


def _add(tensors: dict[str, torch.Tensor], key: str, rng: Random) -> None:
    tensors[edit_key(key, rng)] = tensors[key].clone()


SAFETENSORS = (edit_header, edit_entry, edit_length, edit_metadata, many_entries, edit_tensors, edit_tensors)
