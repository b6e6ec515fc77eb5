"""Batches of samples, loaded ahead by any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ...condition import FluxCondition
from ..batch import TeacherPath, TrainingSample, stack_conditions
from ..draws import Draws
from .batches import BatchPlan
from .captions import Captions
from .samples import Samples
from .visits import Batch, Update


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Samples of one shape, before noise is added.

    Args:
        height (`int`): Pixels.
        width (`int`): Pixels.
        visits (`Batch`): Number and epoch of each sample.
        texts (`tuple[str, ...]`): The caption of each sample; empty if it was dropped.
        latents (`torch.Tensor` of shape `(batch_size, length, 64)`): Mean of the posterior.
        deviation (`torch.Tensor` of the same shape, *optional*): Its standard deviation.
        prompt_embeds (`torch.Tensor` of shape `(batch_size, text_length, 4096)`): T5 hidden states.
        pooled_prompt_embeds (`torch.Tensor` of shape `(batch_size, 768)`): CLIP's pooled output.
        conditions (`tuple[dict[str, torch.Tensor], ...]`): Encoded inputs of each condition.
        mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): Weights of the tokens in the loss.
        weight (`torch.Tensor` of shape `(batch_size,)`): Weights of the samples.
        preserved (`torch.Tensor` of shape `(batch_size,)`): Boolean; see [`TrainingSample`].
        indices (`torch.Tensor` of shape `(batch_size,)`): The samples' numbers.
        path (`TeacherPath`, *optional*): What a student imitates, in distillation.
        strength (`torch.Tensor` of shape `(batch_size,)`, *optional*): How strongly a slider acts on each sample.
    """

    height: int
    width: int
    visits: Batch
    texts: tuple[str, ...]
    latents: torch.Tensor
    deviation: torch.Tensor | None
    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor
    conditions: tuple[dict[str, torch.Tensor], ...]
    mask: torch.Tensor | None
    weight: torch.Tensor
    preserved: torch.Tensor
    indices: torch.Tensor
    path: TeacherPath | None = None
    strength: torch.Tensor | None = None


def stack_samples(
    samples: Sequence[TrainingSample], visits: Batch, texts: Sequence[str], conditions: Sequence[FluxCondition]
) -> SampleBatch:
    """Stack samples of one bucket.

    Args:
        samples (`Sequence[TrainingSample]`): The samples.
        visits (`Batch`): Number and epoch of each.
        texts (`Sequence[str]`): The caption of each, as one of its `prompts`.
        conditions (`Sequence[FluxCondition]`): The conditions, which say which tensors hold for a whole batch.

    Returns:
        `SampleBatch`

    Raises:
        ValueError: if the samples differ in shape.
    """
    sizes = {(sample.height, sample.width) for sample in samples}
    if len(sizes) > 1:
        raise ValueError(f"The samples of a batch have several sizes, {sorted(sizes)}. Batch them by their bucket.")
    prompts = [sample.prompts[text] for sample, text in zip(samples, texts)]
    return SampleBatch(
        samples[0].height,
        samples[0].width,
        visits,
        tuple(texts),
        torch.cat([sample.latents for sample in samples]),
        _stacked([sample.deviation for sample in samples]),
        torch.cat([hidden_states for hidden_states, _ in prompts]),
        torch.cat([pooled for _, pooled in prompts]),
        stack_conditions(conditions, [sample.conditions for sample in samples]),
        _stacked([sample.mask for sample in samples]),
        torch.tensor([sample.weight for sample in samples]),
        torch.tensor([sample.preserved for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        _stacked_paths([sample.path for sample in samples]),
        torch.tensor([float(sample.strength) for sample in samples]),
    )


def _stacked_paths(paths: Sequence[TeacherPath | None]) -> TeacherPath | None:
    given = [path for path in paths if path is not None]
    if not given:
        return None
    # Noise levels follow from the size, which is the same for all samples of a batch.
    return TeacherPath(torch.cat([path.states for path in given]), given[0].sigmas)


def _stacked(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    given = [tensor for tensor in tensors if tensor is not None]
    if given and len(given) < len(tensors):
        raise ValueError("Some samples of a batch have a mask and others none. Batch them by their bucket.")
    return torch.cat(given) if given else None


class SampleLoader:
    """Yields the batches of one process, in order, with the next ones loaded ahead.

    Every visit's caption, crop and colours depend on the seed, the sample and the epoch alone, so any number of
    workers gives the same batches.

    Args:
        samples (`Samples`): A cache, or files that are encoded as they come.
        plan (`BatchPlan`): The order of samples.
        conditions (`Sequence[FluxCondition]`): The conditions, as for [`stack_samples`].
        draws (`Draws`): The run's draws.
        captions (`Captions`): How the caption of a visit is chosen.
        rank (`int`, defaults to 0): Number of this process.
        num_workers (`int`, defaults to 0): Processes that load; 0 loads when a batch is asked for.
        prefetch (`int`, defaults to 2): Batches that each worker loads ahead.
        start_method (`str`, *optional*): How workers are started: `"spawn"`, `"fork"` or `"forkserver"`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        samples: Samples,
        plan: BatchPlan,
        conditions: Sequence[FluxCondition],
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
        self.samples, self.plan, self.conditions = samples, plan, conditions
        self.draws, self.captions, self.rank = draws, captions, rank
        self.num_workers, self.prefetch, self.start_method = num_workers, prefetch, start_method

    def updates(self, first: int, last: int) -> Iterator[tuple[Update, Iterator[SampleBatch]]]:
        """Yield updates with the batches of this process. Take all batches of one before the next.

        Args:
            first (`int`): Number of the first update.
            last (`int`): Number after the last one.

        Yields:
            `tuple[Update, Iterator[SampleBatch]]`
        """
        batches = self.batches(_Visits(self.plan, self.rank, first, last))
        for update in _between(self.plan, first, last):
            yield update, islice(batches, len(update.batches[self.rank]))

    def batches(self, listed: Iterable[Batch]) -> Iterator[SampleBatch]:
        """Yield batches, in order.

        Args:
            listed (`Iterable[Batch]`): The visits of each; it is gone through twice.

        Yields:
            `SampleBatch`
        """
        ahead: dict[str, Any] = {}
        if self.num_workers:
            ahead = {"prefetch_factor": self.prefetch, "multiprocessing_context": self.start_method}
        # The sampler gives batches of visits instead of numbers. The loader's own generator draws nothing that counts.
        loader = DataLoader(
            Fetching(self.samples, self.draws, self.captions), batch_size=None, sampler=listed,
            num_workers=self.num_workers, collate_fn=_unchanged, generator=torch.Generator(), **ahead,
        )  # fmt: skip
        for visits, (fetched, texts) in zip(listed, loader):
            made = [self.samples.finish(each, [text]) for each, text in zip(fetched, texts)]
            yield stack_samples(made, visits, texts, self.conditions)


class Fetching(Dataset[tuple[list[Any], list[str]]]):
    """Batches by their visits, as far as a worker can make them.

    Args:
        samples (`Samples`): The samples.
        draws (`Draws`): The run's draws.
        captions (`Captions`): How captions are chosen.
    """

    def __init__(self, samples: Samples, draws: Draws, captions: Captions) -> None:
        self.samples, self.draws, self.captions = samples, draws, captions

    def __getitem__(self, visits: Batch) -> tuple[list[Any], list[str]]:
        fetched, texts = [], []
        for sample, epoch in visits:
            text = self.captions.choose(self.samples.texts(sample), self.draws, sample, epoch)
            fetched.append(self.samples.fetch(sample, epoch, [text]))
            texts.append(text)
        return fetched, texts


class _Visits:
    """The batches of one process in some updates, made as they are asked for."""

    def __init__(self, plan: BatchPlan, rank: int, first: int, last: int) -> None:
        self.plan, self.rank, self.first, self.last = plan, rank, first, last

    def __iter__(self) -> Iterator[Batch]:
        for update in _between(self.plan, self.first, self.last):
            yield from update.batches[self.rank]


def _between(plan: BatchPlan, first: int, last: int) -> Iterator[Update]:
    return islice(plan.since(first), max(0, last - first))


def _unchanged(batch: Any) -> Any:
    return batch
