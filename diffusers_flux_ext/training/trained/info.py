"""What exported files say of their training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any


HEADER = "training."
"""Begins the entries of a file's header that this package writes."""

_ABSOLUTE = re.compile(r"(?:^|[\s\"'=:,;(\[])(?:/[\w.]|~[/\\]|\\\\|[A-Za-z]:[\\/]|file:)")


@dataclass(frozen=True)
class ExportInfo:
    """What is noted in the header of exported files. Nothing else about the machine or its user is.

    Args:
        base (`str`):
            The base model: a repository of the Hub, or a folder or file, of which the last part of the name is kept.
        license (`str`, *optional*): Licence of the result.
        title (`str`, *optional*): Its name.
        sigma_scheme (`str`, *optional*): How noise levels were drawn, for example `"logit-normal, shift 3.16"`.
        guidance (`float`, *optional*): The embedded guidance in training.
        resolution (`str`, *optional*): For example `"1024"` or `"512, 768, 1024"`.
        steps (`int`, *optional*): Updates that were made.
        seed (`int`, *optional*): Seed of the run.
        data_hash (`str`, *optional*): Hash of the training data.
        extra (`Mapping[str, str]`, *optional*): Further entries.

    Raises:
        ValueError: if an entry holds an absolute path.
        TypeError: if an entry is not a text or a number.
    """

    base: str
    license: str | None = None
    title: str | None = None
    sigma_scheme: str | None = None
    guidance: float | None = None
    resolution: str | None = None
    steps: int | None = None
    seed: int | None = None
    data_hash: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        base = str(self.base)
        if _ABSOLUTE.search(base) or base.startswith("."):
            object.__setattr__(self, "base", PurePath(base.replace("\\", "/")).name)
        for name, value in self._given().items():
            _check(name, value)

    def _given(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        return {**self.extra, **{name: value for name, value in own.items() if value is not None}}

    def metadata(self, **facts: Any) -> dict[str, str]:
        """Return the header of a file.

        Args:
            facts: Further entries that the writer knows, such as rank and alpha; `None` is left out.

        Returns:
            `dict[str, str]`

        Raises:
            ValueError: if an entry holds an absolute path.
        """
        known = {name: value for name, value in facts.items() if value is not None}
        for name, value in known.items():
            _check(name, value)
        return {f"{HEADER}{name}": str(value) for name, value in {**self._given(), **known}.items()}


def _check(name: str, value: Any) -> None:
    if not isinstance(value, str | int | float):
        raise TypeError(f"`{name}` of the file's header is a {type(value).__name__}; expected a text or a number.")
    if isinstance(value, str) and _ABSOLUTE.search(value):
        raise ValueError(
            f"`{name}` of the file's header is {value!r}, which holds an absolute path. It would be published with "
            f"the file: give a name instead."
        )
