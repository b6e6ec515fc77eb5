"""Checks of arguments: switches, choices, texts and callables, and how errors describe a value."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image


def shown(value: Any) -> str:
    """Describe a value for an error: shape and type of large values, short values as they are."""
    if isinstance(value, torch.Tensor):
        kind = " sparse" if value.layout is not torch.strided else ""
        return f"a{kind} {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {value.dtype} and shape {value.shape}"
    if isinstance(value, Image.Image):
        return f"a PIL image of {value.width} x {value.height} pixels in mode {value.mode!r}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(each).__name__ for each in value[:4])})"
    if isinstance(value, (str, bytes, bool, complex, float, type(None))) or isinstance(value, np.generic):
        return _short(repr(value))
    if isinstance(value, Integral):
        # Formatting a huge integer is costly, and Python refuses it.
        return repr(value) if abs(int(value)) < 10**30 else "an integer of more than 30 digits"
    return f"an object of type {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_flag(what: str, value: Any) -> None:
    """Raise a `TypeError` unless a switch is `True` or `False`; 1 and 0 count as such."""
    if not isinstance(value, (bool, np.bool_)) and not (type(value) is int and value in (0, 1)):
        raise TypeError(f"{what} must be True or False, got {shown(value)}.")


def check_choice(what: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a `ValueError` unless a value is one of the texts, or `None` where that is a choice."""
    if not (value is None or isinstance(value, str)) or value not in choices:
        raise ValueError(f"{what} must be one of {list(choices)}, got {shown(value)}.")


def read_texts(what: str, value: Any) -> list[str]:
    """Read a text, or a list or tuple of them, as a list.

    Raises:
        TypeError: if it is something else.
        ValueError: if the list is empty.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{what} must be a text or a list of texts, got {shown(value)}.")
    if not texts:
        raise ValueError(f"{what} is an empty list. Give at least one text.")
    return list(texts)


def check_callable(what: str, value: Any) -> None:
    """Raise a `TypeError` unless a value can be called."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"{what} must be a function, got {shown(value)}.")


def check_instance(what: str, value: Any, kind: type | tuple[type, ...], example: str) -> None:
    """Raise a `TypeError` unless a value is an instance of a type; `example` says how to get one."""
    if not isinstance(value, kind):
        names = " or ".join(f"`{each.__name__}`" for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise TypeError(f"{what} must be a {names}, got {shown(value)}. {example}")


def check_generators(what: str, value: Any, count: int | None = None) -> None:
    """Check a generator, or a list of one per sample.

    Args:
        what (`str`): What it is, for errors.
        value (`torch.Generator` or a list of them): The generators.
        count (`int`, *optional*): Required length of a list; any length by default.

    Raises:
        TypeError: if it is something else.
        ValueError: if a list has another length.
    """
    given = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(each, torch.Generator) for each in given) or not given:
        raise TypeError(f"{what} must be a `torch.Generator` or a list of one per sample, got {shown(value)}.")
    if isinstance(value, (list, tuple)) and count is not None and len(value) != count:
        raise ValueError(f"{what} has {len(value)} generators for {count} samples. Give one, or one per sample.")
