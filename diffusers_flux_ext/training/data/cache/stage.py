"""Caching a data set: what is missing is encoded, by any number of processes, at any number of attempts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import BadSamples
from ..dataset import Item, TrainingData
from .cached import CachedSamples
from .encoding import EncodeOptions, MakeConditions, encode_images, encode_prompt
from .files import FileHashes, read_json_object
from .keys import digest, model_hashes, prompt_key, sample_key
from .manifest import FILES, Share, Unit, merge_shares, units_of, write_share
from .shards import Contents, ShardWriter, read_contents, remove_unused


def cache_samples(
    data: TrainingData,
    pipe: Any,
    make_conditions: MakeConditions,
    folder: str | os.PathLike[str],
    *,
    conditions: Any = None,
    options: EncodeOptions = EncodeOptions(),
    bad: BadSamples | None = None,
    model_hash: str | None = None,
    shard_bytes: int = 256 * 2**20,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    remove_stale: bool = False,
) -> CachedSamples:
    """Encode the samples of a data set that a folder does not hold yet.

    Each sample is stored by the content of its files, what is done to them, the models' weights and the options, so
    only what has changed is made again. Files are written whole or not at all, and the list of samples last: a run
    that is killed goes on where it stopped.

    Args:
        data (`TrainingData`): The data, after [`check_data`].
        pipe (`FluxPipeline`): Gives the VAE, the text encoders and what the conditions need.
        make_conditions (`MakeConditions`): Makes the conditions of a row.
        folder (`str` or `os.PathLike`): Where to; made if it does not exist. All processes see the same one.
        conditions (`Any`, *optional*):
            What tells the conditions and their options from others: texts, numbers, and lists and mappings of them,
            such as the names of the classes, and hashes of modules that run in `encode`.
        options (`EncodeOptions`): What is computed.
        bad (`BadSamples`, *optional*): What to do about samples that cannot be loaded; by default to stop.
        model_hash (`str`, *optional*):
            Tells the models from others; by default their weights are hashed, a second per gigabyte.
        shard_bytes (`int`, defaults to 268435456): Bytes of a file.
        rank (`int`, defaults to 0): Number of this process.
        world_size (`int`, defaults to 1): How many processes share the work.
        wait (`Callable`, *optional*): Waits for all processes; needed if there are several.
        on_progress (`Callable`, *optional*): Called with the numbers of done and of all samples of this process.
        remove_stale (`bool`, defaults to `False`): Whether to remove files without any sample of this data set.

    Returns:
        `CachedSamples`

    Raises:
        ValueError: if samples cannot be loaded or encoded, the data has not been checked, or `wait` is missing.
        OSError: if the folder cannot be written.
    """
    _check(data, rank, world_size, wait)
    root, bad = Path(folder), bad or BadSamples()
    root.mkdir(parents=True, exist_ok=True)
    remembered = read_json_object(root / FILES) or {}
    hashes = FileHashes(remembered)  # type: ignore[arg-type]
    work = _Work(
        data, pipe, make_conditions, conditions, options, model_hashes(pipe, model_hash), read_contents(root), hashes,
        ShardWriter(root, shard_bytes), bad.on_bad_sample == "stop",
    )  # fmt: skip
    units = units_of(data)
    share = work.run(list(enumerate(units))[rank::world_size], on_progress)
    write_share(root, rank, share, hashes)
    if wait is not None:
        wait()
    if rank == 0:
        about = {"conditions": digest(conditions), "text_length": options.text_length}
        merge_shares(root, data, units, bad, world_size, about)
    if wait is not None:
        wait()
    found = CachedSamples(root)
    if rank == 0 and remove_stale:
        remove_unused(root, found.files)
    return found


def _check(data: TrainingData, rank: int, world_size: int, wait: Callable[[], None] | None) -> None:
    if not data.items:
        raise ValueError("The data has no samples yet. Call `check_data` first.")
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in [0, {world_size - 1}], got {rank}.")
    if world_size > 1 and wait is None:
        raise ValueError(f"{world_size} processes need `wait`, such as `accelerator.wait_for_everyone`.")


@dataclass
class _Work:
    data: TrainingData
    pipe: Any
    make_conditions: MakeConditions
    conditions: Any
    options: EncodeOptions
    models: dict[str, str]
    known: Contents
    hashes: FileHashes
    writer: ShardWriter
    stop: bool

    def run(
        self,
        units: Sequence[tuple[int, Unit]],
        on_progress: Callable[[int, int], None] | None,
    ) -> Share:
        share = Share()
        for done, (number, unit) in enumerate(units, 1):
            try:
                share.entries[number] = self._unit(Item(*unit))
            except (ValueError, OSError) as error:
                if self.stop:
                    self.writer.flush()
                    raise
                share.problems.append(str(error))
            if on_progress is not None:
                on_progress(done, len(units))
        self.writer.flush()
        return share

    def _unit(self, item: Item) -> dict[str, Any]:
        row = self.data.row(item.entry, item.row)
        entry, columns = self.data.entries[item.entry], self.data.columns
        used = {columns.target, *self.data.needed, *([] if columns.loss_mask is None else [columns.loss_mask])}
        files = self.hashes.of_row(entry.source, row, used)
        texts = self.data.texts(item.entry, item.row, row)
        keys = []
        for variant in range(self.data.variants if self.data.transform.varies else 1):
            key = sample_key(self.data, item, variant, files, self.models, self.conditions, self.options)
            self._encode(key, item, variant)
            keys.append(key)
        prompts = {text: self._prompt(text) for text in ("", *texts)}
        return {
            "name": row.name, "keys": keys, "texts": texts, "prompts": prompts, "weight": entry.weight,
            "preserved": entry.preserved,
        }  # fmt: skip

    def _encode(self, key: str, item: Item, variant: int) -> None:
        if key in self.known.samples:
            return
        sample = encode_images(self.pipe, self.make_conditions, self.data.load_item(item, variant), {}, self.options)
        self.writer.add_sample(key, sample)
        self.known.samples[key] = {}

    def _prompt(self, text: str) -> str:
        key = prompt_key(text, self.models, self.options)
        if key not in self.known.prompts:
            self.writer.add_prompt(key, encode_prompt(self.pipe, text, self.options))
            self.known.prompts[key] = ""
        return key
