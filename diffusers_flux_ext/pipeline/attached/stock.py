"""The pipelines of diffusers whose loops are known, and which conditions they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline

from ...condition import OUTSIDE_OF_MASK, FluxCondition
from ...inputs.checks import shown


_MASK = {OUTSIDE_OF_MASK: "mask_image"}

STOCK_CLASSES: Mapping[str, Mapping[str, str]] = {
    "FluxControlImg2ImgPipeline": {},
    "FluxControlInpaintPipeline": _MASK,
    "FluxControlNetImg2ImgPipeline": {},
    "FluxControlNetInpaintPipeline": _MASK,
    "FluxControlNetPipeline": {},
    "FluxControlPipeline": {},
    "FluxFillPipeline": _MASK,
    "FluxImg2ImgPipeline": {},
    "FluxInpaintPipeline": _MASK,
    "FluxKontextInpaintPipeline": _MASK,
    "FluxKontextPipeline": {},
    "FluxPipeline": {},
}
"""The classes by name; for each, what it decides itself (see `FluxCondition.exclusive`) and by which argument."""


def check_pipeline(pipe: Any) -> None:
    """Raise a `TypeError` unless conditions can be attached to a pipeline.

    Args:
        pipe (`DiffusionPipeline`): One of `STOCK_CLASSES`, or a subclass with the same `__call__`.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"`pipe` must be a FLUX pipeline of diffusers, got {shown(pipe)}.")
    kind = type(pipe)
    if "conditions" in inspect.signature(kind.__call__).parameters:
        raise TypeError(
            f"{kind.__name__} takes conditions itself, so none can be attached: `pipe(..., conditions=[...])`."
        )
    known = [base for base in kind.__mro__ if is_stock(base)]
    if not known:
        raise TypeError(
            f"Conditions can be attached to the pipelines {', '.join(sorted(STOCK_CLASSES))} of diffusers, whose "
            f"loops are known, got {kind.__name__}. Use `FluxConditionedPipeline.from_pipe(pipe)`, which takes "
            f"`conditions`, for another loop of FLUX.1."
        )
    if kind.__call__ is not known[0].__call__:
        raise TypeError(
            f"{kind.__name__} replaces `__call__` of {known[0].__name__}, so its loop is not known and no conditions "
            f"can be attached. Attach them to a {known[0].__name__}, or use `FluxConditionedPipeline.from_pipe(pipe)`."
        )


def is_stock(kind: type) -> bool:
    """Whether a class is one of `STOCK_CLASSES`, and not one of another package that has the same name."""
    return kind.__name__ in STOCK_CLASSES and kind.__module__.startswith("diffusers.pipelines.flux.")


def check_claims(pipe: DiffusionPipeline, conditions: Sequence[FluxCondition]) -> None:
    """Raise a `ValueError` that names both if a condition decides what the pipeline decides itself.

    Args:
        pipe (`DiffusionPipeline`): A pipeline that passed [`check_pipeline`].
        conditions (`Sequence[FluxCondition]`): The conditions.
    """
    name = next(base.__name__ for base in type(pipe).__mro__ if is_stock(base))
    for condition in conditions:
        argument = STOCK_CLASSES[name].get(condition.exclusive or "")
        if argument is not None:
            raise ValueError(
                f"{type(condition).__name__} decides {condition.exclusive}, and {name} decides them by `{argument}`. "
                f"Leave {type(condition).__name__} out, or give it to `FluxConditionedPipeline.from_pipe(pipe)`, "
                f"which has no `{argument}`."
            )
