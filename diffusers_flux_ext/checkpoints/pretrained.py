"""Making models of transformers from weights of a file without a config beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .gguf_files import dequantised
from .layouts import TensorRecipe
from .modules import check_floating, check_shapes
from .sizes import build_empty
from .tensors import COMPUTED, EIGHT_BITS, Tensors


def planned_model(
    model_class: Any,
    config: Any,
    plan: Mapping[str, TensorRecipe],
    tensors: Tensors,
    prefix: str = "",
    tied: Mapping[str, str] | None = None,
) -> tuple[Any, Tensors]:
    """Build a model of transformers without memory, and check that a plan makes exactly its tensors.

    Args:
        model_class (`type`): A class of transformers.
        config (`PretrainedConfig`): Its config.
        plan (`Mapping[str, TensorRecipe]`): A recipe for each of its keys.
        tensors ([`Tensors`]): Those of the file.
        prefix (`str`, *optional*): What some versions of transformers put before the keys of the plan.
        tied (`Mapping[str, str]`, *optional*): Keys that share the tensor of another one.

    Returns:
        `tuple`: the model on the meta device, and a tensor for each of its keys.

    Raises:
        ValueError: if tensors are missing, surplus or of another shape.
    """
    empty = build_empty(model_class, {"config": config})
    wanted = {key: weight.shape for key, weight in empty.state_dict().items()}
    made = tensors.planned(plan, wanted, prefix)
    others = {key: source for key, source in (tied or {}).items() if source in made.shapes}
    made = made.select({**{key: key for key in made.shapes}, **others})
    check_shapes(empty, made.shapes)
    return empty, made


def load_transformers_model(
    model_class: Any,
    config: Any,
    plan: Mapping[str, TensorRecipe],
    tensors: Tensors,
    *,
    prefix: str = "",
    tied: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Make a model of transformers from exactly the tensors of a plan, which are read one at a time.

    Args:
        model_class (`type`): See [`planned_model`].
        config (`PretrainedConfig`): See [`planned_model`].
        plan (`Mapping[str, TensorRecipe]`): See [`planned_model`].
        tensors ([`Tensors`]): Those of the file. On the meta device the model is, too.
        prefix (`str`, *optional*): See [`planned_model`].
        tied (`Mapping[str, str]`, *optional*): See [`planned_model`].
        dtype (`torch.dtype`, *optional*):
            Data type of the model; by default the one that holds all of the file's, bfloat16 for 8 bits.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if tensors are missing, surplus, of another shape, or not floating-point numbers.
    """
    empty, made = planned_model(model_class, config, plan, tensors, prefix, tied)
    dtype = dtype or _common_type(made)
    weights = {}
    for key in made.shapes.keys() - (tied or {}).keys():
        tensor = dequantised(made.read(key))
        check_floating({key: tensor.dtype})
        weights[key] = tensor if tensor.is_meta else tensor.to(dtype=dtype, copy=True)
    weights |= {key: weights[source] for key, source in (tied or {}).items()}
    if any(weight.is_meta for weight in weights.values()):
        empty.load_state_dict(weights, assign=True)
        tie(empty, tied or {})
        return empty.eval()
    with _silence():
        model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    tie(model, tied or {})
    return model.to(device=device).eval() if device is not None else model.eval()


def tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Let parameters of a model be the same as others.

    Args:
        model (`nn.Module`): The model.
        tied (`Mapping[str, str]`): The keys of the others by those of the parameters.
    """
    for key, source in tied.items():
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, model.get_parameter(source))


def _common_type(tensors: Tensors) -> torch.dtype:
    """Return the type that holds the values of all; models of transformers have one, of 16 bits at least."""
    dtypes = {COMPUTED if dtype in EIGHT_BITS else dtype for dtype in tensors.dtypes.values()}
    packed = tensors.is_scaled or not all(dtype.is_floating_point for dtype in dtypes)
    return COMPUTED if packed else reduce(torch.promote_types, dtypes)


@contextmanager
def _silence() -> Iterator[None]:
    """Hide transformers' progress bar, which counts tensors that are in memory already."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
