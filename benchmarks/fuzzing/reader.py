"""What reads a broken file: a row in the tables of readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .raw import Mutation


@dataclass(frozen=True)
class Reader:
    """Something that reads a file: a class, a converter or a command.

    Attributes:
        name (`str`):
            Its name in the tables.
        build (`Callable[[Path], Path]`):
            Writes valid files into an empty folder and returns the one that is changed.
        call (`Callable[[Path, Path], Any]`):
            Reads the changed file; the second path is where a converter may write to, which does not exist. A command
            returns its exit code and writes its message to stderr; everything else raises.
        memory (`int`, *optional*, defaults to 0):
            Bytes that the call needs for its own models, over the common allowance.
        mutations (`tuple`, *optional*):
            Mutations that this reader's files have besides those of all files with their suffix.
        others (`Callable`, *optional*):
            Gives other valid contents of the file; each seed chooses one of them or the first.
    """

    name: str
    build: Callable[[Path], Path]
    call: Callable[[Path, Path], Any]
    memory: int = 0
    mutations: tuple[Mutation, ...] = ()
    others: Callable[[], Sequence[bytes]] = tuple
