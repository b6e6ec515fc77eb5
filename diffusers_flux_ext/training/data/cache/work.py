"""The share of one process: finding out what is missing, opening it ahead, and encoding it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..dataset import TrainingData
from ..records import Item, LoadedSample
from .encoding import EncodeOptions, MakeConditions, encode_images, encode_prompt
from .files import FileHashes
from .keys import prompt_key, sample_key
from .manifest import Share, Unit
from .shards import Contents, ShardWriter


@dataclass
class _Opened:
    """A sample's keys, and what has to be encoded."""

    name: str
    texts: list[str]
    strength: float
    keys: list[str] = field(default_factory=list)
    missing: dict[str, LoadedSample] = field(default_factory=dict)


@dataclass
class Work:
    """What a process does; see [`cache_samples`] for its arguments.

    Args:
        data (`TrainingData`): The data.
        pipe (`Any`): The pipeline, or a function that loads it.
        make_conditions (`MakeConditions`): Makes the conditions of a row.
        conditions (`Any`): What tells the conditions from others.
        options (`EncodeOptions`): What is computed.
        models (`Mapping[str, str]`): Hashes of the models.
        known (`Contents`): What is there already.
        hashes (`FileHashes`): Hashes of files.
        writer (`ShardWriter`): Writes what is encoded.
        stop (`bool`): Whether to stop at the first sample that cannot be loaded.
        num_threads (`int`): Threads that open images ahead.
    """

    data: TrainingData
    pipe: Any
    make_conditions: MakeConditions
    conditions: Any
    options: EncodeOptions
    models: Mapping[str, str]
    known: Contents
    hashes: FileHashes
    writer: ShardWriter
    stop: bool
    num_threads: int

    def run(self, units: Sequence[tuple[int, Unit]], on_progress: Callable[[int, int], None] | None) -> Share:
        """Encode what is missing of some units.

        Args:
            units (`Sequence[tuple[int, Unit]]`): The units with their numbers.
            on_progress (`Callable`, *optional*): Called with the numbers of done and of all units.

        Returns:
            `Share`: up to the first problem, if it stops there.
        """
        share = Share()
        try:
            for done, ((number, unit), opened) in enumerate(zip(units, self._opened_ahead(units)), 1):
                try:
                    share.entries[number] = self._encode(unit[0], opened())
                except (ValueError, OSError) as error:
                    share.problems.append(str(error))
                    if self.stop:
                        break
                if on_progress is not None:
                    on_progress(done, len(units))
        finally:
            self.writer.flush()
        return share

    def _opened_ahead(self, units: Sequence[tuple[int, Unit]]) -> Iterator[Callable[[], _Opened]]:
        if not self.num_threads:
            for _, unit in units:
                yield lambda unit=unit: self._open(Item(*unit))  # type: ignore[misc]
            return
        with ThreadPoolExecutor(self.num_threads) as pool:
            waiting: deque[Future[_Opened]] = deque()
            rest = iter(units)
            try:
                for _, unit in units:
                    while len(waiting) < 2 * self.num_threads and (following := next(rest, None)) is not None:
                        waiting.append(pool.submit(self._open, Item(*following[1])))
                    yield waiting.popleft().result
            finally:
                pool.shutdown(cancel_futures=True)

    def _open(self, item: Item) -> _Opened:
        data, row = self.data, self.data.row(item.entry, item.row)
        mask = data.columns.loss_mask
        used = {data.columns.target, *data.needed, *([] if mask is None else [mask])}
        files = self.hashes.of_row(data.entries[item.entry].source, row, used)
        opened = _Opened(row.name, data.texts(item.entry, item.row, row), data.strength_of(row))
        for variant in range(data.variants if data.transform.varies else 1):
            key = sample_key(data, item, variant, files, self.models, self.conditions, self.options)
            opened.keys.append(key)
            if key not in self.known.samples:
                opened.missing[key] = data.load_item(item, variant)
        return opened

    def _encode(self, number: int, opened: _Opened) -> dict[str, Any]:
        for key, loaded in opened.missing.items():
            # Another sample of the same content may have been encoded meanwhile.
            if key not in self.known.samples:
                sample = encode_images(self._loaded_pipe(), self.make_conditions, loaded, {}, self.options)
                self.writer.add_sample(key, sample)
                self.known.samples[key] = {}
        entry = self.data.entries[number]
        return {
            "name": opened.name,
            "keys": opened.keys,
            "texts": opened.texts,
            "prompts": {text: self._prompt(text) for text in ("", *opened.texts)},
            "weight": entry.weight,
            "preserved": entry.preserved,
            "strength": opened.strength,
        }

    def _prompt(self, text: str) -> str:
        key = prompt_key(text, self.models, self.options)
        if key not in self.known.prompts:
            self.writer.add_prompt(key, encode_prompt(self._loaded_pipe(), text, self.options))
            self.known.prompts[key] = ""
        return key

    def _loaded_pipe(self) -> Any:
        if not hasattr(self.pipe, "vae"):
            self.pipe = self.pipe()
        return self.pipe
