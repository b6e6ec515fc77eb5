"""The list of a cache's samples, joined from what each process made."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..bad_samples import BadSamples
from ..buckets import Size
from ..dataset import TrainingData
from .cached import MANIFEST
from .files import FileHashes, read_json_object, write_json
from .keys import VERSION
from .shards import read_contents


FILES = "files.json"
"""Where hashes of files are remembered."""

Unit: TypeAlias = tuple[int, int, Size]
"""Source, row and size: what is encoded once, however often an epoch repeats it."""


@dataclass
class Share:
    """What processes found out about their samples.

    Args:
        entries (`dict[int, dict[str, Any]]`): By the unit's number: name, keys, captions and weight.
        problems (`list[str]`): Samples that could not be loaded.
        files (`dict[str, list[str]]`): Stamps and hashes of files.
    """

    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)


def units_of(data: TrainingData) -> list[Unit]:
    """Return what there is to encode, in the order of the samples."""
    return list(dict.fromkeys((item.entry, item.row, item.size) for item in data.items))


def write_share(root: Path, rank: int, share: Share, hashes: FileHashes) -> None:
    """Write what a process found out.

    Args:
        root (`Path`): The cache's folder.
        rank (`int`): The process' number.
        share (`Share`): What it found out.
        hashes (`FileHashes`): The hashes that it used.
    """
    write_json(root / f"part-{rank}.json", {**asdict(share), "files": hashes.used})


def read_shares(root: Path, world_size: int) -> list[Share]:
    """Read what all processes found out.

    Args:
        root (`Path`): The cache's folder.
        world_size (`int`): How many processes there are.

    Returns:
        `list[Share]`

    Raises:
        ValueError: if a process left no result.
    """
    found = []
    for number in range(world_size):
        part: dict[str, Any] | None = read_json_object(root / f"part-{number}.json")
        if part is None:
            raise ValueError(
                f"Process {number} left no result in `{root}`. All processes must see the same folder and end "
                f"together."
            )
        part["entries"] = {int(place): entry for place, entry in part["entries"].items()}
        found.append(Share(**part))
    return found


def join_shares(shares: Sequence[Share], total: int, bad: BadSamples) -> Share:
    """Join what the processes found out.

    Args:
        shares (`Sequence[Share]`): One per process.
        total (`int`): How many units there are.
        bad (`BadSamples`): What to do about samples that could not be loaded.

    Returns:
        `Share`

    Raises:
        ValueError: if there are bad samples that may not be skipped, or nothing is left.
    """
    joined = Share()
    for share in shares:
        joined.entries |= share.entries
        joined.files |= share.files
        joined.problems += share.problems
    bad.problems += joined.problems
    bad.judge(total)
    if not joined.entries:
        raise ValueError("No sample is left to cache.")
    return joined


def write_manifest(
    root: Path, data: TrainingData, units: Sequence[Unit], share: Share, about: dict[str, Any], world_size: int
) -> None:
    """Write the list of all samples, and remove what the processes wrote.

    Args:
        root (`Path`): The cache's folder.
        data (`TrainingData`): The data.
        units (`Sequence[Unit]`): See [`units_of`].
        share (`Share`): What all processes found out.
        about (`dict[str, Any]`): Further entries of the manifest.
        world_size (`int`): How many processes there were.
    """
    contents = read_contents(root)
    order = sorted(share.entries)
    entries = [share.entries[number] for number in order]
    places = {units[number]: place for place, number in enumerate(order)}
    items = [
        [place, item.repeat, data.entries[item.entry].repeats]
        for item in data.items
        if (place := places.get((item.entry, item.row, item.size))) is not None
    ]
    samples = {key: contents.samples[key] for key in sorted({key for entry in entries for key in entry["keys"]})}
    texts = {key for entry in entries for key in entry["prompts"].values()}
    prompts = {key: contents.prompts[key] for key in sorted(texts)}
    files = {entry["file"] for entry in samples.values()} | set(prompts.values())
    sizes = {name: contents.sizes[name] for name in sorted(files)}
    write_json(root / FILES, share.files)
    listed = {"entries": entries, "items": items, "samples": samples, "prompts": prompts, "files": sizes}
    write_json(root / MANIFEST, {"version": VERSION, **about, **listed})
    for number in range(world_size):
        (root / f"part-{number}.json").unlink(missing_ok=True)
    # What killed processes were writing. Another run's file is not an hour old.
    for unfinished in root.glob(".*.tmp"):
        if time.time() - unfinished.stat().st_mtime > 3600:
            shutil.rmtree(unfinished, ignore_errors=True)
