"""Caching a data set: what is missing is encoded, by any number of processes, at any number of attempts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..bad_samples import BadSamples
from ..dataset import TrainingData
from .cached import CachedSamples
from .encoding import EncodeOptions, MakeConditions
from .files import FileHashes, read_json_object
from .keys import digest, model_hashes
from .manifest import FILES, join_shares, read_shares, units_of, write_manifest, write_share
from .shards import ShardWriter, read_contents, remove_unused
from .work import Work


def cache_samples(
    data: TrainingData,
    pipe: Any,
    make_conditions: MakeConditions,
    folder: str | os.PathLike[str],
    *,
    conditions: Any = None,
    options: EncodeOptions = EncodeOptions(),
    bad: BadSamples | None = None,
    model_hash: str | Mapping[str, str] | None = None,
    shard_bytes: int = 256 * 2**20,
    num_threads: int = 2,
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
        pipe (`FluxPipeline` or `Callable`):
            Gives the VAE, the text encoders and what the conditions need. Or, together with `model_hash`, a function
            that loads it, which is called if something is missing.
        make_conditions (`MakeConditions`): Makes the conditions of a row.
        folder (`str` or `os.PathLike`): Where to; made if it does not exist. All processes see the same one.
        conditions (`Any`, *optional*):
            What tells the conditions and their options from others: texts, numbers, and lists and mappings of them,
            such as the names of the classes, and hashes of modules that run in `encode`.
        options (`EncodeOptions`): What is computed.
        bad (`BadSamples`, *optional*): What to do about samples that cannot be loaded; by default to stop.
        model_hash (`str` or `Mapping[str, str]`, *optional*):
            Tells the models from others, all or by component; by default their weights are hashed, a second per
            gigabyte.
        shard_bytes (`int`, defaults to 268435456): Bytes of a file.
        num_threads (`int`, defaults to 2): Threads that open images ahead; 0 opens them in turn.
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
    _check(data, pipe, model_hash, rank, world_size, wait)
    root, bad, wait = Path(folder), bad or BadSamples(), wait or _nothing
    root.mkdir(parents=True, exist_ok=True)
    hashes = FileHashes(read_json_object(root / FILES) or {})
    work = Work(
        data, pipe, make_conditions, conditions, options, model_hashes(pipe, model_hash), read_contents(root), hashes,
        ShardWriter(root, shard_bytes), stop=bad.on_bad_sample == "stop", num_threads=num_threads,
    )  # fmt: skip
    units = units_of(data)
    write_share(root, rank, work.run(list(enumerate(units))[rank::world_size], on_progress), hashes)
    wait()
    # All processes read all results, so that all of them stop if one met an error.
    joined = join_shares(read_shares(root, world_size), len(units), bad)
    wait()
    if rank == 0:
        about = {"conditions": digest(conditions), "text_length": options.text_length}
        write_manifest(root, data, units, joined, about, world_size)
    wait()
    found = CachedSamples(root)
    if rank == 0 and remove_stale:
        remove_unused(root, found.files)
    return found


def _nothing() -> None:
    """Wait for nobody."""


def _check(
    data: TrainingData, pipe: Any, model_hash: object, rank: int, world_size: int, wait: Callable[[], None] | None
) -> None:
    if not data.items:
        raise ValueError("The data has no samples yet. Call `check_data` first.")
    if model_hash is None and not hasattr(pipe, "vae"):
        raise ValueError("A function that loads the pipeline needs `model_hash`, or it would have to run at once.")
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` must be in [0, {world_size - 1}], got {rank}.")
    if world_size > 1 and wait is None:
        raise ValueError(f"{world_size} processes need `wait`, such as `accelerator.wait_for_everyone`.")
