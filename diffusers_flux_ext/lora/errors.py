"""Exceptions for LoRA files, and how they come to name the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..checkpoints.layouts import list_keys


# Messages contain keys of a file, which may be as long as the file.
MAX_MESSAGE, MAX_NAME = 3000, 300


class LoRAError(ValueError):
    """A LoRA file that cannot be read, converted or applied. The message says why and what to do.

    Args:
        message (`str`):
            What was wrong, what was expected and what to do; the middle of a very long one is left out.
        files:
            The files that the error is about; the message begins with those that it does not mention.
    """

    def __init__(self, message: str, *files: object) -> None:
        super().__init__(shortened(message, MAX_MESSAGE))
        self.files = tuple(shortened(str(file)) for file in files)

    def __str__(self) -> str:
        message = super().__str__()
        named = [file for file in self.files if f"`{file}" not in message]
        return f"{', '.join(f'`{file}`' for file in named)}: {message}" if named else message


def shortened(text: str, length: int = MAX_NAME) -> str:
    """Return `text`, with its middle left out if it is longer than `length`."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}[...{len(text) - length} characters...]{text[-(length - length // 2) :]}"


@contextmanager
def naming_files(*sources: Any) -> Iterator[None]:
    """Make every [`LoRAError`] of the block name the files that it is about, unless it already names files.

    Args:
        sources: Paths or repositories; state dicts and other objects have no name and are skipped.
    """
    try:
        yield
    except LoRAError as error:
        paths = [os.fspath(source) for source in sources if isinstance(source, str | os.PathLike)]
        error.files = error.files or tuple(dict.fromkeys(shortened(str(path)) for path in paths))
        raise


class UnknownLoRAKeysError(LoRAError):
    """Keys that are not in any known layout of a FLUX.1 LoRA.

    Args:
        keys (`Sequence[str]`): The keys; the message lists up to ten.
        total (`int`): How many keys the file has.
        closest (`str`, *optional*): The known format that the rest of the file looks like.
    """

    def __init__(self, keys: Sequence[str], total: int, closest: str | None = None) -> None:
        self.keys = tuple(keys)
        like = f" The others look like the format {closest!r}." if closest else ""
        super().__init__(
            f"{len(keys)} of {total} keys are not understood: {list_keys(keys)}.{like} They may belong to a model "
            "other than FLUX.1. Pass `strict=False` to leave them out."
        )


class ForeignLoRAError(LoRAError):
    """A LoRA for another model family than FLUX.1, or one that is not a static update of weights."""


class UnsupportedLoRAError(LoRAError):
    """A valid LoRA with parts that the target format cannot hold."""
