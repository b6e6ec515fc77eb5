"""States of optimizers and the like as tensors and JSON, without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..trained.protocol import gathered


PLAIN = (str, bool, int, float, type(None))


def pack_state(state: Any, tensors: dict[str, torch.Tensor], prefix: str) -> Any:
    """Split nested dictionaries, lists and tuples into tensors and a tree that JSON can hold.

    Args:
        state (`Any`): Nested containers of tensors, numbers, texts, booleans and `None`, with any plain keys.
        tensors (`dict[str, torch.Tensor]`): Gets the tensors, under names that start with `prefix`.
        prefix (`str`): Start of the names.

    Returns:
        `Any`: the tree.

    Raises:
        TypeError: if there is anything else in the state; its place is named.
    """
    if isinstance(state, torch.Tensor):
        while prefix in tensors:
            # Keys may contain the dot that joins them.
            prefix += "'"
        tensors[prefix] = gathered(state)
        return {"tensor": prefix}
    if isinstance(state, PLAIN):
        return {"value": state} if not isinstance(state, float) else {"float": state.hex()}
    if isinstance(state, Mapping):
        return {
            "dict": [[_key(key, prefix), pack_state(each, tensors, f"{prefix}.{key}")] for key, each in state.items()]
        }
    if isinstance(state, (list, tuple)):
        kind = "tuple" if isinstance(state, tuple) else "list"
        return {kind: [pack_state(each, tensors, f"{prefix}.{place}") for place, each in enumerate(state)]}
    raise TypeError(
        f"A checkpoint cannot hold the {type(state).__name__} at `{prefix}`. It holds tensors, numbers, texts, "
        f"booleans, None, and dictionaries, lists and tuples of them; use an optimizer with such a state."
    )


def unpack_state(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Join what [`pack_state`] split.

    Args:
        tree (`Any`): The tree.
        tensors (`Mapping[str, torch.Tensor]`): The tensors.

    Returns:
        `Any`: the state, with the types and values it had.

    Raises:
        ValueError: if the tree is not one of [`pack_state`], or a tensor is missing.
    """
    if not isinstance(tree, Mapping) or len(tree) != 1:
        raise ValueError(f"The state of a checkpoint is damaged: got {str(tree)[:60]!r} instead of one entry.")
    ((kind, content),) = tree.items()
    if kind == "tensor":
        if content not in tensors:
            raise ValueError(f"The state of a checkpoint is damaged: there is no tensor `{content}`.")
        return tensors[content]
    if kind == "value":
        return content
    if kind == "float":
        return float.fromhex(content)
    if kind == "dict":
        return {key: unpack_state(each, tensors) for key, each in content}
    if kind in ("list", "tuple"):
        parts = [unpack_state(each, tensors) for each in content]
        return tuple(parts) if kind == "tuple" else parts
    raise ValueError(f"The state of a checkpoint is damaged: got the unknown kind {kind!r}.")


def _key(key: Any, prefix: str) -> Any:
    if not isinstance(key, PLAIN):
        raise TypeError(f"A checkpoint cannot hold the key {key!r} of type {type(key).__name__} at `{prefix}`.")
    return key
