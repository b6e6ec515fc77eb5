"""Quantised models by their sizes alone, for plans of files that are not at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..checkpoints.packed_weights import GGUF_FORMATS, NUNCHAKU, TORCHAO, PlannedLinear, what_runs


def _rows(block: int, size: int) -> Callable[[int], int]:
    """Return what gives the bytes of a row whose blocks of numbers take this size each."""
    return lambda numbers: -(-numbers // block) * size


# Bytes of a row by its length; torchao has a scale for each row, and for int4 two in 16 bits for each 128 numbers.
KINDS: dict[str, Callable[[int], int]] = {
    **{f"gguf-{name.lower()}": _rows(*sizes) for name, sizes in GGUF_FORMATS.items()},
    "int8": lambda numbers: numbers + 5,
    "fp8": lambda numbers: numbers + 4,
    "int4": lambda numbers: -(-numbers // 2) + 4 * -(-numbers // 128),
}
"""What a VRAM budget holds, by the names of `flux-ext plan --quantization`."""

_REFUSED = {
    "nf4": "bitsandbytes' weights do not move in parts, so that no VRAM budget can hold them",
    NUNCHAKU: "nunchaku's blocks run in one call of its own, without the attention processors that conditions need",
}


def check_kind(kind: str) -> None:
    """Raise a `ValueError` if a kind of quantisation cannot be planned."""
    if kind not in KINDS:
        reason = _REFUSED.get(kind, "it is not known")
        raise ValueError(
            f"Quantisation {kind!r} cannot be planned: {reason}. {what_runs()} Known are {sorted(KINDS)}."
        )


def pack_on_paper(model: nn.Module, kind: str, blocks: dict[str, nn.Module]) -> None:
    """Give the linear layers of a model's blocks the sizes that a quantisation has. They cannot compute.

    Args:
        model (`torch.nn.Module`): A model on the meta device.
        kind (`str`): One of [`KINDS`].
        blocks (`dict[str, torch.nn.Module]`): Its blocks by path; embedders are stored as they are in most files.

    Raises:
        ValueError: If the kind is not known.
    """
    check_kind(kind)
    for path, block in blocks.items():
        for name, layer in list(block.named_modules()):
            # The layer of T5 that reads the data type of its weight is left out, except in GGUF files.
            if type(layer) is nn.Linear and (kind.startswith("gguf") or not name.endswith("wo")):
                owner, _, attribute = f"{path}.{name}".rpartition(".")
                setattr(model.get_submodule(owner), attribute, _planned(layer, kind))


def _planned(layer: nn.Linear, kind: str) -> PlannedLinear:
    made: Any = PlannedLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    row = KINDS[kind](layer.in_features)
    made.weight = nn.Parameter(torch.empty(layer.out_features, row, dtype=torch.uint8, device="meta"), False)
    made.bias = layer.bias
    made.packing = "GGUF" if kind.startswith("gguf") else TORCHAO
    return made
