"""The samples of a run: sources, the check, the cache, the split, and the order of updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffusers.utils import logging

from ..assemble import Place
from ..config.sample_sections import DataSection, SourceSection
from ..config.sections import RunSection, TrainingConfig
from ..data import (
    BadSamples,
    BatchPlan,
    DataReport,
    EncodedSamples,
    EncodeOptions,
    Entry,
    FolderSource,
    ParquetSource,
    SampleBatch,
    SampleLoader,
    Samples,
    SavedDatasetSource,
    Source,
    TableSource,
    TrainingData,
    WebDatasetSource,
    cache_samples,
    check_data,
)
from ..data.cache.keys import model_hashes
from ..draws import Draws
from .encoders import remember_hashes
from .model import DTYPES
from .templates import ConditionTemplate


logger = logging.get_logger(__name__)


def open_source(section: SourceSection) -> Source:
    """Open a source of samples.

    Args:
        section (`SourceSection`): The configuration.

    Returns:
        `Source`

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it has no samples or is broken.
    """
    path: Any = section.path
    safety: dict[str, Any] = {"allow_outside": section.allow_outside}
    if section.kind == "folder":
        return FolderSource(path, beside=section.beside, **safety)
    if section.kind == "webdataset":
        return WebDatasetSource(path)
    columns: dict[str, Any] = {"file_columns": section.file_columns, "base": section.base}
    if section.kind == "dataset":
        return SavedDatasetSource(path, section.split, **columns, **safety)
    read: Any = ParquetSource if section.kind == "parquet" else TableSource
    return read(path, **columns, **safety, allow_urls=section.allow_urls)


def open_data(config: TrainingConfig, draws: Draws) -> tuple[TrainingData, DataReport]:
    """Open all sources and check every header.

    Args:
        config (`TrainingConfig`): The configuration.
        draws (`Draws`): The run's randomness.

    Returns:
        `tuple[TrainingData, DataReport]`

    Raises:
        ValueError: if samples are bad; the first ten problems are listed.
    """
    section = config.data
    entries = [
        Entry(
            open_source(source), source.repeats, source.weight, source.prefix, source.trigger,
            None if source.sizes is None else source.sizes.rule, source.preserved, source.allow_flip,
        )
        for source in section.sources
    ]  # fmt: skip
    needed = dict.fromkeys(column for condition in config.conditions for column in condition.inputs.values())
    data = TrainingData(
        entries, draws, section.sizes.rule, section.transform, section.captions, section.columns, tuple(needed),
        section.images, section.variants, tuple(each.type for each in config.conditions if not each.allow_flip),
        None if config.train.slider is None else config.train.slider.column,
    )  # fmt: skip
    report = check_data(data, BadSamples(section.on_bad_sample, section.bad_limit), section.decode)
    return data, report


def encode_options(config: TrainingConfig) -> EncodeOptions:
    """Return what is computed of each sample."""
    guided = config.distill is not None and config.distill.teacher.guided
    return EncodeOptions(config.data.text_length, config.data.posterior, DTYPES[config.model.dtype], guided)


def make_samples(
    config: TrainingConfig,
    data: TrainingData,
    pipe: Any,
    templates: Sequence[ConditionTemplate],
    hashes: Mapping[str, str] | None = None,
    process: int = 0,
    processes: int = 1,
    wait: Callable[[], None] | None = None,
) -> Samples:
    """Encode all samples into the cache, or return samples that are encoded as they come.

    Args:
        config (`TrainingConfig`): The configuration.
        data (`TrainingData`): The checked data.
        pipe (`FluxConditionedPipeline` or `Callable`): Gives the encoders, or loads them if `hashes` are known.
        templates (`Sequence[ConditionTemplate]`): The conditions.
        hashes (`Mapping[str, str]`, *optional*): Those of the models; see [`recall_hashes`].
        process (`int`, defaults to 0): Number of this process.
        processes (`int`, defaults to 1): How many there are.
        wait (`Callable`, *optional*): Waits for all processes.

    Returns:
        `Samples`
    """

    def make_conditions(row: Any) -> list[Any]:
        return [template.of(row) for template in templates]

    options = encode_options(config)
    if config.data.cache is None:
        return EncodedSamples(data, pipe, make_conditions, options)
    known = model_hashes(pipe, hashes)
    samples = cache_samples(
        data,
        pipe,
        make_conditions,
        config.data.cache,
        conditions=[each.section.model_dump(mode="json", exclude={"dropout", "allow_flip"}) for each in templates],
        options=options,
        bad=BadSamples(config.data.on_bad_sample, config.data.bad_limit),
        model_hash=known,
        rank=process,
        world_size=processes,
        wait=wait,
        on_progress=_report,
    )
    if process == 0:
        remember_hashes(config, known)
    return samples


def _report(done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        logger.info(f"Encoded {done} of {total} samples.")


class Part:
    """Some of the samples, under numbers of their own.

    Args:
        samples (`Samples`): The samples.
        chosen (`Sequence[int]`): Numbers of the chosen ones.
    """

    def __init__(self, samples: Samples, chosen: Sequence[int]) -> None:
        self.samples, self.chosen = samples, list(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def key(self, index: int) -> Any:
        """See [`Samples`]."""
        return self.samples.key(self.chosen[index])

    def texts(self, index: int) -> list[str]:
        """See [`Samples`]."""
        return self.samples.texts(self.chosen[index])

    def fetch(self, index: int, epoch: int, texts: Sequence[str]) -> Any:
        """See [`Samples`]."""
        return self.samples.fetch(self.chosen[index], epoch, texts)

    def finish(self, fetched: Any, texts: Sequence[str]) -> Any:
        """See [`Samples`]."""
        return self.samples.finish(fetched, texts)


def split(samples: Samples, data: DataSection, draws: Draws) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples to train on, and of those that are held out.

    Args:
        samples (`Samples`): All samples.
        data (`DataSection`): How many are held out.
        draws (`Draws`): Chooses them.

    Returns:
        `tuple[list[int], list[int]]`

    Raises:
        ValueError: if nothing is left to train on.
    """
    count = len(samples)
    if data.held_out >= count:
        raise ValueError(f"`data.held_out` is {data.held_out}, but there are {count} samples. Leave some to train on.")
    order = draws.permutation("held out", length=count)
    held = sorted(order[: data.held_out])
    return sorted(set(range(count)) - set(held)), held


class LoadedUpdates:
    """Batches of one process by update, loaded ahead.

    Args:
        loader (`SampleLoader`): Loads them.
        total (`int`): Number of updates of the run.
    """

    def __init__(self, loader: SampleLoader, total: int) -> None:
        self.loader, self.total = loader, total
        self._running: Any = None
        self._next = -1

    def batches(self, update: int) -> Iterable[tuple[SampleBatch, Place]]:
        """Return the batches of an update; those of the next one are loaded meanwhile.

        Args:
            update (`int`): Its number.

        Yields:
            `tuple[SampleBatch, Place]`
        """
        if update != self._next:
            self._running = self.loader.updates(update, self.total)
        self._next = update + 1
        _, batches = next(self._running)
        plan, rank = self.loader.plan, self.loader.rank
        for number, batch in enumerate(batches):
            first = (number * plan.world_size + rank) * plan.batch_size
            yield batch, Place(update, range(first, first + plan.batch_size), plan.total)


def make_plan(samples: Any, run: RunSection, draws: Draws, processes: int) -> BatchPlan:
    """Return the order of samples; arguments as of the functions above."""
    keys = [samples.key(index) for index in range(len(samples))]
    return BatchPlan(keys, draws, batch_size=run.batch_size, accumulation=run.accumulation, world_size=processes)
