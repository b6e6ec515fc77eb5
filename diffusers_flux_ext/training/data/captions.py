"""Captions: their variants, all of which a cache holds, and which one a visit takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoints.messages import shorten
from ..draws import Draws


TRIGGER = "[trigger]"
"""What is replaced by the trigger word in captions and other texts."""


@dataclass(frozen=True)
class Captions:
    """How captions are read and varied.

    Args:
        columns (`tuple[str, ...]`, defaults to `("prompt",)`):
            Columns of captions: a text, or a list of several. One of all of them is chosen at each visit.
        dropout (`float`, defaults to 0.0): Share of visits that get the empty caption, in [0, 1].
        shuffles (`int`, defaults to 0): Number of shuffled orders of each caption's tags; 0 leaves them alone.
        keep (`int`, defaults to 0): The first tags, which keep their place.
        separator (`str`, defaults to `","`): What stands between tags.
        allow_missing (`bool`, defaults to `False`): Whether samples without a caption get the empty one.

    Raises:
        ValueError: if an option is out of range.
    """

    columns: tuple[str, ...] = ("prompt",)
    dropout: float = 0.0
    shuffles: int = 0
    keep: int = 0
    separator: str = ","
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"`dropout` of Captions must be in [0, 1], got {self.dropout}.")
        if min(self.shuffles, self.keep) < 0 or not self.separator or not self.columns:
            raise ValueError(
                f"`shuffles` and `keep` of Captions must not be negative, and `separator` and `columns` not empty; "
                f"got {self.shuffles}, {self.keep}, {self.separator!r} and {self.columns}."
            )

    def variants(
        self,
        name: str,
        values: Mapping[str, Any],
        draws: Draws,
        index: int,
        prefix: str = "",
        trigger: str | None = None,
    ) -> list[str]:
        """Return all captions that a sample can get, apart from the empty one of `dropout`.

        Args:
            name (`str`): The row, for errors.
            values (`Mapping[str, Any]`): Its values.
            draws (`Draws`): The run's draws, for shuffled tags.
            index (`int`): The row's number.
            prefix (`str`): Put before each caption.
            trigger (`str`, *optional*):
                Replaces `[trigger]`; put before captions that have neither.

        Returns:
            `list[str]`: at least one, without repetitions, in the order of the columns.

        Raises:
            ValueError: if there is no caption, or a column holds something else.
        """
        found: list[str] = []
        for text in self._texts(name, values):
            orders = [text] if not self.shuffles else self._shuffled(text, draws, index, len(found))
            found += [with_trigger(name, prefix + each if each else prefix.strip(), trigger) for each in orders]
        return list(dict.fromkeys(found))

    def choose(self, texts: Sequence[str], draws: Draws, index: int, epoch: int) -> str:
        """Return the caption of a visit.

        Args:
            texts (`Sequence[str]`): The sample's variants.
            draws (`Draws`): The run's draws.
            index (`int`): The sample's number.
            epoch (`int`): The epoch.

        Returns:
            `str`: one of the texts, or the empty one.
        """
        drop, which = draws.uniform("data/caption", epoch, index, shape=(2,)).tolist()
        return "" if drop < self.dropout else texts[int(which * len(texts))]

    def _texts(self, name: str, values: Mapping[str, Any]) -> list[str]:
        texts: list[str] = []
        for column in self.columns:
            given = values.get(column)
            listed = [] if given is None else [given] if isinstance(given, str) else given
            if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) for text in listed):
                raise ValueError(f"{name}: `{column}` must be a text or a list of texts, got {shorten(repr(given))}.")
            texts += [text for text in listed if text.strip()]
        if not texts and not self.allow_missing:
            raise ValueError(f"{name} has no caption in {list(self.columns)}.")
        return texts or [""]

    def _shuffled(self, text: str, draws: Draws, index: int, number: int) -> list[str]:
        tags = [tag.strip() for tag in text.split(self.separator)]
        kept, rest = tags[: self.keep], tags[self.keep :]
        joint = f"{self.separator} " if self.separator.strip() == self.separator else self.separator
        orders = [
            draws.permutation("data/tags", index, number, order, length=len(rest)) for order in range(self.shuffles)
        ]
        return [joint.join([*kept, *(rest[place] for place in order)]) for order in orders]


def with_trigger(name: str, text: str, trigger: str | None) -> str:
    """Put a trigger word into a caption.

    Args:
        name (`str`): The row, for errors.
        text (`str`): The caption.
        trigger (`str`, *optional*): The word.

    Returns:
        `str`: the caption with `[trigger]` replaced; with the word in front if it has neither.

    Raises:
        ValueError: if the caption has `[trigger]` and there is no word.
    """
    if trigger is None:
        if TRIGGER in text:
            raise ValueError(f"{name}: the caption has {TRIGGER}, but the source has no `trigger`. Give one.")
        return text
    filled = text.replace(TRIGGER, trigger)
    if trigger in filled:
        return filled
    return f"{trigger}, {filled}" if filled else trigger
