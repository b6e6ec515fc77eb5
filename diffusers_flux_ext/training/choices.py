"""Names and numbers that users choose: checked before anything runs, with the nearest known name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from ..checkpoints.messages import shorten


T = TypeVar("T")


@dataclass(frozen=True)
class Number:
    """A number that a user may choose.

    Args:
        default (`float`): Its value if nothing is chosen.
        low (`float`, defaults to minus infinity): The smallest that is allowed.
        high (`float`, defaults to infinity): The largest that is allowed.
        open_low (`bool`, defaults to `False`): Whether `low` itself is not allowed.
        whole (`bool`, defaults to `False`): Whether it must be a whole number.
    """

    default: float
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    whole: bool = False

    def check(self, name: str, value: Any) -> float:
        """Return the value if it is allowed.

        Args:
            name (`str`): The option's name, for the message.
            value (`Any`): What was given.

        Returns:
            `float`

        Raises:
            ValueError: if it is not a finite number in the range.
        """
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        fits = is_number and (self.low < value if self.open_low else self.low <= value) and value <= self.high
        if not fits or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise ValueError(f"`{name}` must be {kind} {self._range()}, got {shorten(value)}.")
        return value

    def _range(self) -> str:
        start = f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        parts = [start] if self.low > -math.inf else []
        parts += [f"at most {self.high:.6g}"] if self.high < math.inf else []
        return " and ".join(parts) or "that is finite"


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of a table.

    Args:
        table (`Mapping[str, T]`): Entries by name.
        name (`str`): What was chosen.
        what (`str`): What it is, for the message, for example `"weighting"`.

    Returns:
        `T`

    Raises:
        ValueError: if there is no such entry; the message names the nearest ones.
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{shorten(repr(name))} is not a known {what}{_known(name, table)}")
    return table[name]


def _known(name: object, known: Collection[str]) -> str:
    """Return the end of a message: which name was probably meant, and which there are."""
    close = get_close_matches(str(name), list(known), n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return f"{meant} Known: {', '.join(known) or 'none'}."


def read_numbers(options: Mapping[str, Any], known: Mapping[str, Number], owner: str) -> dict[str, float]:
    """Return all numbers of a choice: those that were given, and the defaults of the others.

    Args:
        options (`Mapping[str, Any]`): What was given, by name.
        known (`Mapping[str, Number]`): The numbers there are.
        owner (`str`): What they belong to, for the message, for example `"the levels 'beta'"`.

    Returns:
        `dict[str, float]`

    Raises:
        ValueError: if a name is not known or a number is out of its range.
    """
    check_names(options, known, owner)
    return {name: number.check(name, options.get(name, number.default)) for name, number in known.items()}


def check_names(given: Collection[str], known: Collection[str], owner: str) -> None:
    """Check that options are known.

    Args:
        given (`Collection[str]`): Their names.
        known (`Collection[str]`): The names there are.
        owner (`str`): What they belong to, for the message.

    Raises:
        ValueError: if one is not known.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"`{shorten(name)}` is not an option of {owner}{_known(name, known)}")
