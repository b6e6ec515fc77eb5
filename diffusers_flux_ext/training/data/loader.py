"""Batches of samples, loaded ahead by any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from ..assemble import Place
from ..batch import TrainingSample
from ..draws import Draws
from .batches import Batch, BatchPlan, Update
from .captions import Captions
from .samples import Samples


Fetched: TypeAlias = tuple[list[Any], list[list[str]]]
"""What a worker made of each sample of a batch, and the captions that each comes with."""

_Ahead: TypeAlias = tuple[Update, Iterator[Fetched]]


class LoadedUpdates:
    """Gives the batches of each update to [`Trainer`], with the next ones loaded ahead.

    Every visit's caption, crop and colours depend on the seed, the sample and the epoch alone, so any number of
    workers gives the same batches, and so does a run that is resumed.

    Args:
        samples (`Samples`): A cache, or files that are encoded as they come.
        plan (`BatchPlan`): The order of samples.
        draws (`Draws`): The run's draws.
        captions (`Captions`):
            How the caption of a visit is chosen and dropped. Samples come with this caption and the empty one, so the
            `caption_dropout` of [`BatchMaker`] would drop captions once more.
        rank (`int`, defaults to 0): Number of this process.
        num_workers (`int`, defaults to 0): Processes that load; 0 loads when a batch is asked for.
        prefetch (`int`, defaults to 2): Batches that each worker loads ahead.
        start_method (`str`, *optional*):
            How workers are started: `"spawn"`, `"fork"` or `"forkserver"`; by default as Python does.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        samples: Samples,
        plan: BatchPlan,
        draws: Draws,
        captions: Captions = Captions(),
        rank: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        start_method: str | None = None,
    ) -> None:
        if not 0 <= rank < plan.world_size:
            raise ValueError(f"`rank` must be in [0, {plan.world_size - 1}], got {rank}.")
        if num_workers < 0 or prefetch < 1:
            raise ValueError(
                f"`num_workers` must not be negative and `prefetch` at least 1, got {num_workers} and {prefetch}."
            )
        self.samples, self.plan, self.rank = samples, plan, rank
        self.num_workers, self.prefetch, self.start_method = num_workers, prefetch, start_method
        self.fetching = Fetching(samples, draws, captions)
        self._next = -1
        self._ahead: Iterator[_Ahead] = iter(())

    def batches(self, update: int) -> Iterator[tuple[list[TrainingSample], Place]]:
        """Yield the batches of this process in an update.

        Args:
            update (`int`): Its number. What is loaded ahead is of use if it is the one after the last.

        Yields:
            `tuple[list[TrainingSample], Place]`: the samples of a batch, and their places in the update.
        """
        if update != self._next:
            self._ahead = self._load(update)
        # An update that is broken off is loaded anew.
        self._next = -1
        planned, loaded = next(self._ahead)
        for step, (fetched, texts) in enumerate(loaded):
            samples = [self.samples.finish(*each) for each in zip(fetched, texts)]
            yield samples, Place(update, planned.positions(self.rank, step), self.plan.total)
        self._next = update + 1

    def _load(self, first: int) -> Iterator[_Ahead]:
        ahead: dict[str, Any] = {}
        if self.num_workers:
            ahead = {"prefetch_factor": self.prefetch, "multiprocessing_context": self.start_method}
        # The sampler gives batches of visits instead of numbers. The loader's own generator draws nothing that counts.
        loader = DataLoader(
            self.fetching, batch_size=None, sampler=_Visits(self.plan, self.rank, first), collate_fn=_unchanged,
            num_workers=self.num_workers, generator=torch.Generator(), **ahead,
        )  # fmt: skip
        fetched = iter(loader)
        for update in self.plan.since(first):
            yield update, _take(fetched, len(update.batches[self.rank]))


class Fetching(Dataset[Fetched]):
    """Batches by their visits, as far as a worker can make them.

    Args:
        samples (`Samples`): The samples.
        draws (`Draws`): The run's draws.
        captions (`Captions`): How captions are chosen.
    """

    def __init__(self, samples: Samples, draws: Draws, captions: Captions) -> None:
        self.samples, self.draws, self.captions = samples, draws, captions

    def __getitem__(self, visits: Batch) -> Fetched:
        fetched, texts = [], []
        for sample, epoch in visits:
            chosen = self.captions.choose(self.samples.texts(sample), self.draws, sample, epoch)
            wanted = list(dict.fromkeys([chosen, ""]))
            fetched.append(self.samples.fetch(sample, epoch, wanted))
            texts.append(wanted)
        return fetched, texts


class _Visits:
    """The batches of one process from an update on, without end."""

    def __init__(self, plan: BatchPlan, rank: int, first: int) -> None:
        self.plan, self.rank, self.first = plan, rank, first

    def __iter__(self) -> Iterator[Batch]:
        for update in self.plan.since(self.first):
            yield from update.batches[self.rank]


def _unchanged(batch: Any) -> Any:
    return batch


def _take(batches: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield next(batches)
