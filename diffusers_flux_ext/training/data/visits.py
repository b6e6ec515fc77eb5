"""Samples in their epochs, and the updates that they make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Visit(NamedTuple):
    """A sample in an epoch.

    Args:
        sample (`int`): The sample's number.
        epoch (`int`): Which of its visits it is: what is drawn for it depends on both numbers.
    """

    sample: int
    epoch: int


Batch = tuple[Visit, ...]


@dataclass(frozen=True)
class Update:
    """The samples of one update of the weights.

    Args:
        number (`int`): Its number since the beginning of training, from 0.
        epoch (`int`): The epoch that it belongs to.
        batches (`tuple[tuple[Batch, ...], ...]`): For each process, its batches, one after another.
    """

    number: int
    epoch: int
    batches: tuple[tuple[Batch, ...], ...]

    @property
    def samples(self) -> list[Visit]:
        """All samples of all processes, in the order of their positions in the update."""
        steps = zip(*self.batches)
        return [visit for step in steps for batch in step for visit in batch]
