"""User numbers: one, or one per item, always finite; and the window in which a condition acts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from ..denoise import DenoisingStep
from .checks import shown


logger = logging.get_logger(__name__)

LARGEST = 10_000.0
"""Greatest size of a scale: a greater one overflows in half precision and draws nothing but noise."""


def read_number(what: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> float:
    """Read one finite number.

    Args:
        what (`str`): What it is, for errors, such as "`scale` of ControlNetImage".
        value (`float`): The number; scalars of NumPy and tensors without axes count, booleans do not.
        low (`float`): Least number.
        high (`float`): Greatest number.

    Returns:
        `float`

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not finite or out of range.
    """
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number from {low:g} to {high:g}, got {shown(value)}.")
    # Not with `float`, which fails for integers of hundreds of digits.
    number: Any = value
    if not low <= number <= high:
        raise ValueError(f"{what} must be a finite number from {low:g} to {high:g}, got {shown(value)}.")
    return float(number)


def read_count(what: str, value: Any, low: int, high: int) -> int:
    """Read one whole number.

    Args:
        what (`str`): What it is, for errors.
        value (`int`): The number; integers of NumPy count, booleans and floats do not.
        low (`int`): Least number.
        high (`int`): Greatest number.

    Returns:
        `int`

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number from {low} to {high}, got {shown(value)}.")
    number: Any = value
    if not low <= number <= high:
        raise ValueError(f"{what} must be from {low} to {high}, got {shown(value)}.")
    return int(number)


def read_numbers(
    what: str, given: Any, count: int, per: str, low: float = -LARGEST, high: float = LARGEST
) -> list[float]:
    """Read one number for all items, or one for each.

    Args:
        what (`str`): What they are, for errors.
        given (`float` or `Sequence[float]`): One number for all, or a list or tuple of one each.
        count (`int`): Number of items.
        per (`str`): What each number belongs to, for errors, such as "image".
        low (`float`): Least number.
        high (`float`): Greatest number.

    Returns:
        `list[float]` of length `count`.

    Raises:
        TypeError: if something is not a number.
        ValueError: if a number is not finite or out of range, or there are too many or too few.
    """
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    numbers = [read_number(what, number, low, high) for number in (given if several else [given])]
    if not several:
        return numbers * count
    if len(numbers) != count:
        raise ValueError(f"{what} has {len(numbers)} numbers, but {count} are needed: give one for all, or one {per}.")
    return numbers


def check_window(owner: str, start: Any, end: Any) -> None:
    """Raise an error unless `0 <= start < end <= 1`; `owner` is the class name."""
    for name, value in (("start", start), ("end", end)):
        read_number(f"`{name}` of {owner}, a fraction of the schedule,", value, 0, 1)
    if not start < end:
        raise ValueError(
            f"`start` of {owner} must be less than `end` of {owner}, got start={start} and end={end}. Both are "
            f"fractions of the schedule with 0 <= start < end <= 1, where 0 is the first step."
        )


def is_active(step: DenoisingStep, start: float, end: float) -> bool:
    """Whether a step lies in a window as a whole, by diffusers' rule for `control_guidance_start` and `_end`.

    Args:
        step (`DenoisingStep`): Gives the number of the step and how many there are.
        start (`float`): Fraction of the schedule; 0 is the first step.
        end (`float`): Fraction of the schedule; 1 is after the last step.
    """
    return step.index / step.num_steps >= start and (step.index + 1) / step.num_steps <= end


def warn_without_step(owner: str, step: DenoisingStep, start: float, end: float) -> None:
    """Warn, at the first step of a call, about a window that contains no whole step of the call."""
    if step.index > 0 or step.branch != "cond":
        return
    if not any(is_active(replace(step, index=index), start, end) for index in range(step.num_steps)):
        logger.warning(
            f"{owner} acts from {start} to {end} of the schedule, but no step of {step.num_steps} lies in "
            f"there as a whole, so it changes nothing. Widen the window or take more steps."
        )


def check_finite(what: str, tensor: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Check a tensor's type and values, with one synchronisation on a GPU.

    Args:
        what (`str`): What it is, for errors.
        tensor (`torch.Tensor` of any shape): Of real numbers, dense and with values.
        low (`float`): Least value; by default any finite one.
        high (`float`): Greatest value; by default any finite one.

    Raises:
        TypeError: if it is not a tensor, or complex, sparse or without values.
        ValueError: if it is empty, or a value is NaN, infinite or out of range.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{what} must be a tensor, got {shown(tensor)}.")
    if tensor.is_complex() or tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise TypeError(f"{what} must be a dense tensor of real numbers with values, got {shown(tensor)}.")
    if not tensor.numel():
        raise ValueError(f"{what} is empty: its shape is {tuple(tensor.shape)}.")
    values = tensor.detach() if tensor.dtype in _ORDERED else tensor.detach().float()
    least, greatest = torch.stack(torch.aminmax(values)).tolist()
    # Comparisons with NaN are false.
    if not (low <= least <= greatest <= high and math.isfinite(greatest - least)):
        bounds = "be finite" if math.isinf(high) else f"be from {low:g} to {high:g}"
        raise ValueError(f"{what} must {bounds} everywhere, but its values go from {least:g} to {greatest:g}.")


_ORDERED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64)


def check_embeds(what: str, tensor: Any, shape: str, *sizes: int | None) -> None:
    """Check embeddings: real floating-point numbers of a shape, finite.

    Args:
        what (`str`): What they are, for errors.
        tensor (`torch.Tensor`): The embeddings.
        shape (`str`): The shape in words, for errors.
        sizes (`int` or `None`): Size of each axis; `None` for any but zero.

    Raises:
        TypeError: if it is not a dense tensor of real floating-point numbers.
        ValueError: if it has another shape, or a value is NaN or beyond what half precision holds.
    """
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise TypeError(f"{what} must be a floating-point tensor of shape {shape}, got {shown(tensor)}.")
    fits = tensor.ndim == len(sizes) and all(
        wanted in (None, found) and found for wanted, found in zip(sizes, tensor.shape)
    )
    if not fits:
        raise ValueError(f"{what} must have the shape {shape}, got {tuple(tensor.shape)}.")
    check_finite(what, tensor, -LARGEST_VALUE, LARGEST_VALUE)


LARGEST_VALUE = 65504.0
"""Greatest size of a value of embeddings and latents, the greatest number of half precision."""
