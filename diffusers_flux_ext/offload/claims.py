"""Checks whether something else already moves a module's weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from .._compat import vram_budget_of
from ..checkpoints.packed_weights import BITSANDBYTES, QUANTO, packings


_WAYS_OUT = {
    "accelerate": "Take that away first: `pipe.remove_all_hooks()` ends model and sequential offload.",
    "group offloading": "Load it again first: what is group offloaded by diffusers cannot be placed otherwise.",
}


# Their tensors hold others, which stay behind when diffusers' groups of weights are moved.
_IMMOVABLE = {BITSANDBYTES, QUANTO}


def budget_suspended(module: nn.Module) -> AbstractContextManager[Any]:
    """Suspend the VRAM budget of a module, if it has one, and plan again afterwards."""
    budget = vram_budget_of({"module": module})
    return nullcontext() if budget is None else budget.suspended()


def check_unclaimed(module: nn.Module, name: str | None = None, model_offload: bool = False) -> None:
    """Raise a `ValueError` if accelerate or diffusers moves a module's weights.

    Args:
        module (`torch.nn.Module`): The module.
        name (`str`, *optional*): What the error calls it; its class by default.
        model_offload (`bool`, *optional*, defaults to `False`): Whether accelerate may move the module as a whole.

    Raises:
        ValueError: if something does; the message says what, and how to end that.
    """
    for part in module.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        by_accelerate = hasattr(part, "_hf_hook") and not (model_offload and part is module)
        other = "accelerate" if by_accelerate else "group offloading" if "group_offloading" in hooks else None
        if other is not None:
            what = f"This {type(module).__name__}" if name is None else repr(name)
            raise ValueError(f"{what} is offloaded by {other} already. {_WAYS_OUT[other]}")


def check_movable(module: nn.Module, name: str) -> None:
    """Raise if a module's weights cannot come to the card and leave it in parts.

    Args:
        module (`torch.nn.Module`): The module.
        name (`str`): What the error calls it.

    Raises:
        ValueError: if bitsandbytes or optimum-quanto quantised it.
    """
    found = sorted(_IMMOVABLE & set(packings(module)))
    if found:
        raise ValueError(
            f"{name!r} is quantised by {found[0]}, whose weights do not move in parts, so no VRAM budget can hold it. "
            "Keep it on the card, with `pipe.to(...)` or `pipe.enable_model_cpu_offload()`; or quantise it as GGUF or "
            "by torchao, which a budget moves."
        )
