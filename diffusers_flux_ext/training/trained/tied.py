"""One `down` for the parts of a layer that the reference has in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...checkpoints.layouts import (
    DOUBLE_BLOCKS,
    DOUBLE_LINEARS,
    SINGLE_BLOCKS,
    SINGLE_LINEARS,
    split_block_index,
)
from .adapters import Adapter


_FUSED = tuple(
    tuple(blocks[0] + part for part in parts)
    for blocks, rows in ((DOUBLE_BLOCKS, DOUBLE_LINEARS), (SINGLE_BLOCKS, SINGLE_LINEARS))
    for parts, _, _ in rows
    if len(parts) > 1
)
"""The parts of each fused layer: queries, keys, values, and the MLP in single blocks."""


def fused_groups(paths: Mapping[str, Any]) -> Iterator[list[str]]:
    """Return those of some layers that are one layer in DiffSynth-Studio and in kohya's files.

    Args:
        paths (`Mapping[str, Any]`): Names of layers.

    Returns:
        `Iterator[list[str]]`: groups of two or more, in the order of the fused layer's rows.
    """
    indices = dict.fromkeys(index for path in paths if (index := split_block_index(path)[1]))
    for index in indices:
        for parts in _FUSED:
            group = [path for part in parts if (path := part.format(index)) in paths]
            if len(group) > 1:
                yield group


def tie(adapter: Adapter) -> None:
    """Let the parts of fused layers share one `down`.

    That is the parametrisation of a LoRA on the fused layer, as DiffSynth-Studio and kohya's scripts train it: the
    same number of parameters, and files of theirs at the rank itself, where separate ones give three or four times the
    rank. With dropout each part has a mask of its own.

    Args:
        adapter (`Adapter`): The adapter, of a transformer.

    Raises:
        ValueError: if parts of a layer have different ranks, or nothing can be shared.
    """
    groups = list(fused_groups(adapter.sizes)) if adapter.component == "transformer" else []
    if not groups:
        raise ValueError(
            f"`tied` is given, but the targets of `{adapter.component}` include no two parts of a fused layer, such "
            f"as queries and keys of one block. Leave it out."
        )
    for group in groups:
        ranks = {path: adapter.sizes[path][0] for path in group}
        if len(set(ranks.values())) > 1:
            raise ValueError(f"`tied` layers share one `down`, but these have different ranks: {ranks}.")
        first: Any = adapter.model.get_submodule(group[0])
        for path in group:
            layer: Any = adapter.model.get_submodule(path)
            layer.lora_A[adapter.name].weight = first.lora_A[adapter.name].weight
            adapter.owners[path] = group[0]
