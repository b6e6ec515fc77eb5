"""What to do about samples that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffusers.utils import logging

from ...inputs.checks import check_choice


logger = logging.get_logger(__name__)

LISTED = 10
"""How many problems an error lists."""


@dataclass
class BadSamples:
    """What to do about samples that cannot be used.

    Args:
        on_bad_sample (`"stop"` or `"skip"`, defaults to `"stop"`):
            Raise an error that lists the first ten, or leave them out with a warning.
        limit (`float`, defaults to 0.1): Share of all samples up to which they are skipped, in [0, 1].

    Raises:
        ValueError: if an option is out of range.
    """

    on_bad_sample: Literal["stop", "skip"] = "stop"
    limit: float = 0.1
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("`on_bad_sample`", self.on_bad_sample, ("stop", "skip"))
        if not 0 <= self.limit <= 1:
            raise ValueError(f"`limit` of bad samples must be in [0, 1], got {self.limit}.")

    def judge(self, total: int) -> None:
        """Raise an error about the problems, or warn of them.

        Args:
            total (`int`): How many samples there are.

        Raises:
            ValueError: if there are problems and none is to be skipped, or more than the limit.
        """
        count = len(self.problems)
        if not count:
            return
        listed = "\n".join(f"- {problem}" for problem in self.problems[:LISTED])
        more = f"\nand {count - LISTED} more" if count > LISTED else ""
        what = f"{count} of {total} samples cannot be used:\n{listed}{more}"
        if self.on_bad_sample == "stop":
            raise ValueError(f"{what}\nRepair or remove them, or set `on_bad_sample='skip'`.")
        if count > self.limit * total:
            raise ValueError(f"{what}\nThat is more than the share of {self.limit} that may be skipped.")
        logger.warning(f"{what}\nThey are left out.")
