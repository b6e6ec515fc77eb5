"""Helpers for error messages: quoting, shortening and listing names, and naming the file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


MAX_LISTED_KEYS = 10
# The longest key of a FLUX.1 checkpoint has about 100 characters.
MAX_NAME = 160
_ENDS = 60


def shorten(name: object) -> str:
    """Shorten a name for an error message: at most 160 characters, on one line.

    Args:
        name (`object`): A key, or what is in its place.

    Returns:
        `str`
    """
    text = name if isinstance(name, str) else repr(type(name)) if _is_large(name) else str(name)
    if len(text) > MAX_NAME:
        text = f"{text[:_ENDS]}...{text[-_ENDS:]} ({len(text)} characters)"
    return text if text.isprintable() else ascii(text)[1:-1]


def _is_large(name: object) -> bool:
    # Python refuses to print whole numbers of more than 4,300 digits.
    return isinstance(name, int) and name.bit_length() > 1000


def list_keys(keys: Collection[Any]) -> str:
    """List up to ten keys for an error message, and how many more there are."""
    listed = sorted(map(shorten, keys))[:MAX_LISTED_KEYS]
    rest = len(keys) - len(listed)
    return ", ".join(f"`{key}`" for key in listed) + (f" and {rest} more" if rest else "")


def list_shapes(shapes: Mapping[str, Any]) -> str:
    """List up to ten keys with their shapes for an error message, and how many more there are."""
    listed = sorted(shapes.items())[:MAX_LISTED_KEYS]
    rest = len(shapes) - len(listed)
    return ", ".join(f"`{shorten(k)}` {tuple(shape)}" for k, shape in listed) + (f" and {rest} more" if rest else "")


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Prefix errors with the name of the file that they are about.

    Args:
        source (`object`): The file whose content is checked in the block; nothing is added unless it is a path.

    Raises:
        ValueError: Raised in the block, with the file's name.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(source, str | os.PathLike) or os.fspath(source) in str(error):
            raise
        raise ValueError(f"`{source}`: {error}") from error
