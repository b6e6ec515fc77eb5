"""Sizes of a model from the names and shapes in a file, which may be broken or hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from .messages import list_keys, list_shapes


ModelT = TypeVar("ModelT")
_LONGEST_INDEX = 4


def is_index(text: str) -> bool:
    """Whether a part of a key is the index of a block: a number from 0 to 9999 without leading zeros."""
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_INDEX and (text == "0" or text[0] != "0")


def count_blocks(keys: Iterable[str], name: str) -> int:
    """Count the blocks of a list of modules.

    Args:
        keys (`Iterable[str]`): Keys of a state dict.
        name (`str`): The list, such as `"transformer_blocks"`.

    Returns:
        `int`: their number, 0 if there are none. It never exceeds the number of keys.

    Raises:
        ValueError: If they are not numbered consecutively from 0.
    """
    start = f"{name}."
    found = {key[len(start) :].split(".", 1)[0] for key in keys if key.startswith(start)}
    missing = next(index for index in range(len(found) + 1) if str(index) not in found)
    if missing < len(found):
        odd = found - {str(index) for index in range(len(found))}
        raise ValueError(
            f"The blocks of `{name}` must be numbered from 0 on without gaps: `{name}.{missing}` is missing, but "
            f"there is {list_keys([start + index for index in odd])}."
        )
    return len(found)


def check_dimensions(shapes: Mapping[str, Sequence[int]], dimensions: Mapping[str, int]) -> None:
    """Check the tensors that determine a model's sizes.

    Args:
        shapes (`Mapping[str, Sequence[int]]`): Shapes by key.
        dimensions (`Mapping[str, int]`): Number of dimensions of the tensors of some keys, which must exist.

    Raises:
        ValueError: If one has another number of dimensions, or is empty.
    """
    wrong = {key: shapes[key] for key, count in dimensions.items() if len(shapes[key]) != count or 0 in shapes[key]}
    if wrong:
        raise ValueError(
            f"Tensors have a wrong number of dimensions, or are empty: {list_shapes(wrong)}; expected "
            + ", ".join(f"{dimensions[key]} for `{key}`" for key in sorted(wrong))
            + "."
        )


def build_empty(model_class: Callable[..., ModelT], config: Mapping[str, Any]) -> ModelT:
    """Build a model on the meta device, without memory for its weights.

    Args:
        model_class (`type`): The model's class.
        config (`Mapping[str, Any]`): Arguments of its constructor, which follow from a file's shapes.

    Returns:
        The model on the meta device.

    Raises:
        ValueError: If no model of these sizes can be built.
    """
    try:
        with torch.device("meta"):
            return model_class(**config)
    except (ArithmeticError, RuntimeError) as error:
        name = getattr(model_class, "__name__", "model")
        raise ValueError(f"There is no {name} of the sizes that the shapes show, {dict(config)}: {error}") from error
