"""Mutations of pickles: other content, other containers, and code that must not run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from random import Random
from typing import Any

import torch

from .raw import RAW
from .safetensors_files import edit_state_dict


class _RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pickle_was_executed",)


def _odd_values(rng: Random) -> Any:
    return rng.choice(
        (
            None, 3, "x", [], {}, {"a": {"b": {}}}, [torch.zeros(2)], torch.zeros(2, device="meta"),
            torch.zeros(1).expand(100_000, 100_000), torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.int8),
            torch.nn.Parameter(torch.zeros(3)), torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
            collections.OrderedDict(a=torch.zeros(1)), torch.zeros(2).conj(), torch.float32, 10**5000, float("nan"),
        )
    )  # fmt: skip


def edit_pickle(data: bytes, rng: Random) -> bytes:
    """Save a changed state dict as torch does."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    edit = rng.choice((_values, _keys, _tensors, _wrapped, _other))
    return _saved(edit(content, rng), rng)


def _saved(content: Any, rng: Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def _values(content: Any, rng: Random) -> Any:
    return {**content, rng.choice(sorted(content)): _odd_values(rng)}


def _keys(content: Any, rng: Random) -> Any:
    return {**content, rng.choice((3, None, ("a", 1), 1.5, b"x", "", "k" * 10**6, 10**400)): torch.zeros(2)}


def _tensors(content: Any, rng: Random) -> Any:
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        return edit_state_dict(content, rng)
    chosen = rng.choice([key for key, value in content.items() if isinstance(value, dict)])
    return {**content, chosen: _tensors(content[chosen], rng)}


def _wrapped(content: Any, rng: Random) -> Any:
    return rng.choice(
        ({"state_dict": content}, {"model": content}, [content], (content, content), {"a": {"b": content}})
    )


def _other(content: Any, rng: Random) -> Any:
    return rng.choice((_RunsCode(), {"x": _RunsCode()}, torch.zeros(2), "x", None, [], {}, 10**5000))


def deflated(data: bytes, rng: Random) -> bytes:
    """Return the members of the archive packed, some of them blown up with zeros, doubled or edited."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return data
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        chosen = rng.choice(source.namelist())
        edit = rng.choice(("bomb", "bomb", "twice", "raw", "drop", "none"))
        for name in source.namelist():
            content = source.read(name)
            if name == chosen:
                if edit == "drop":
                    continue
                content = {"bomb": bytes(2**28), "raw": rng.choice(RAW)(content, rng)}.get(edit, content)
                if edit == "twice":
                    packed.writestr(name + "x", content)
            packed.writestr(name, content)
    return target.getvalue()


def plain_pickle(data: bytes, rng: Random) -> bytes:
    """Return a pickle that torch did not write."""
    content: Any = rng.choice(({"a": 1}, {"a": _RunsCode()}, [1, 2], {3: b"x"}, collections.OrderedDict(a=2)))
    return pickle.dumps(content, protocol=rng.choice((0, 2, 4, 5)))


PICKLES = (edit_pickle, edit_pickle, edit_pickle, deflated, plain_pickle)
