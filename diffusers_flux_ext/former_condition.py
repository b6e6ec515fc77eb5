"""Conditions written before `reuse` and `exclusive`: the former attributes still work, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from functools import partial
from typing import Any


_REUSE, _EXCLUSIVE = ("per_step", "phase", "shares_branches"), ("once", "pastes")


def translate_former_names(condition: type, pasting: str) -> None:
    """Give a class that defines former attributes the methods that replaced them.

    Args:
        condition (`type`): A subclass of [`FluxCondition`].
        pasting (`str`): The value of `exclusive` that took the place of `pastes`.
    """
    found = [name for name in (*_REUSE, *_EXCLUSIVE) if name in vars(condition)]
    if not found:
        return
    warnings.warn(
        f"{condition.__name__} defines {found}. Define `reuse(step)` in place of {list(_REUSE)}, and `exclusive` in "
        f"place of {list(_EXCLUSIVE)}; see docs/composition.md. The former names go in version 0.4.",
        DeprecationWarning,
        stacklevel=4,
    )
    new: dict[str, Any] = {"reuse": _reuse} if set(found) & set(_REUSE) else {}
    new |= {"exclusive": property(partial(_exclusive, pasting))} if set(found) & set(_EXCLUSIVE) else {}
    for name, value in new.items():
        if name not in vars(condition):
            setattr(condition, name, value)


def _reuse(condition: Any, step: Any) -> Hashable | None:
    if getattr(condition, "shares_branches", False):
        return step.index
    if getattr(condition, "per_step", False):
        return None
    phase = getattr(condition, "phase", None)
    return step.branch, None if phase is None else phase(step)


def _exclusive(pasting: str, condition: Any) -> str | None:
    if getattr(condition, "pastes", False):
        return pasting
    return f"what {type(condition).__name__} is for" if getattr(condition, "once", False) else None
