"""Making models of transformers from weights of a file without a config beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from transformers.utils import logging

from .key_tables import build_weights
from .layouts import TensorRecipe
from .messages import list_keys
from .modules import check_floating
from .sizes import build_empty


def load_transformers_model(
    model_class: Any,
    config: Any,
    plan: Mapping[str, TensorRecipe],
    read: Callable[[str], torch.Tensor],
    *,
    prefix: str = "",
    tied: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Make a model of transformers from exactly the tensors of a plan.

    Args:
        model_class (`type`): A class of transformers.
        config (`PretrainedConfig`): Its config.
        plan (`Mapping[str, TensorRecipe]`): A recipe for each of its keys.
        read (`Callable`): Gives the file's tensor of a key. On the meta device the model is, too.
        prefix (`str`, *optional*): What some versions of transformers put before the keys of the plan.
        tied (`Mapping[str, str]`, *optional*): Keys that share the tensor of another one.
        dtype (`torch.dtype`, *optional*):
            Data type of the model; by default the one that holds all of the file's, bfloat16 for 8 bits.
        device (`str` or `torch.device`, *optional*): Device of the model; the CPU by default.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if tensors are missing, surplus, of another shape, or not floating-point numbers.
    """
    empty = build_empty(model_class, {"config": config})
    wanted = {key: weight.shape for key, weight in empty.state_dict().items()}
    named = {key if key in wanted else f"{prefix}{key}": recipe for key, recipe in plan.items()}
    weights = build_weights(named, wanted, read)
    weights |= {key: weights[source] for key, source in (tied or {}).items() if source in weights}
    wrong = sorted(
        key
        for key in wanted | weights
        if key not in wanted or key not in weights or tuple(wanted[key]) != tuple(weights[key].shape)
    )
    if wrong:
        raise ValueError(
            f"These tensors are missing, surplus or of a wrong shape for {model_class.__name__}: {list_keys(wrong)}."
        )
    check_floating({key: weight.dtype for key, weight in weights.items()})
    if any(weight.is_meta for weight in weights.values()):
        empty.load_state_dict(weights, assign=True)
        empty.tie_weights()
        return empty.eval()
    dtype = dtype or _common_type({weight.dtype for weight in weights.values()})
    copies = {key: weight.to(dtype=dtype, copy=True) for key, weight in weights.items()}
    with _silence():
        model = model_class.from_pretrained(None, config=config, state_dict=copies, dtype=dtype)
    return model.to(device=device).eval() if device is not None else model.eval()


def _common_type(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """Return the type that holds the values of all; models of transformers have one, of 16 bits at least."""
    return reduce(torch.promote_types, [torch.bfloat16 if dtype.itemsize == 1 else dtype for dtype in dtypes])


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
