"""The list of a cache's samples, joined from what each process made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..buckets import Size
from ..checks import BadSamples
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
    """What one process found out about its samples.

    Args:
        entries (`dict[int, dict[str, Any]]`): By the unit's number: name, keys, captions and weight.
        problems (`list[str]`): Samples that could not be loaded.
    """

    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


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
    entries = {str(number): entry for number, entry in share.entries.items()}
    write_json(root / f"part-{rank}.json", {"entries": entries, "problems": share.problems, "files": hashes.used})


def merge_shares(
    root: Path,
    data: TrainingData,
    units: Sequence[Unit],
    bad: BadSamples,
    world_size: int,
    about: dict[str, Any],
) -> None:
    """Join what the processes found to one manifest, which is written last.

    Args:
        root (`Path`): The cache's folder.
        data (`TrainingData`): The data.
        units (`Sequence[Unit]`): See [`units_of`].
        bad (`BadSamples`): What to do about samples that could not be loaded.
        world_size (`int`): How many processes there were.
        about (`dict[str, Any]`): Further entries of the manifest.

    Raises:
        ValueError: if a process left no result, or there are bad samples that may not be skipped.
    """
    parts = list(_parts(root, world_size))
    bad.problems += [problem for part in parts for problem in part["problems"]]
    bad.judge(len(units))
    entries = {int(number): entry for part in parts for number, entry in part["entries"].items()}
    places = {unit: number for number, unit in enumerate(units)}
    items = [
        [place, item.repeat, data.entries[item.entry].repeats]
        for item in data.items
        if (place := places[item.entry, item.row, item.size]) in entries
    ]
    order = sorted(entries)
    numbers = {number: position for position, number in enumerate(order)}
    contents = read_contents(root)
    used_samples = {key for entry in entries.values() for key in entry["keys"]}
    used_prompts = {key for entry in entries.values() for key in entry["prompts"].values()}
    samples = {key: contents.samples[key] for key in sorted(used_samples)}
    prompts = {key: contents.prompts[key] for key in sorted(used_prompts)}
    files = {entry["file"] for entry in samples.values()} | set(prompts.values())
    write_json(root / FILES, {name: entry for part in parts for name, entry in part["files"].items()})
    manifest = {
        "version": VERSION, **about, "entries": [entries[number] for number in order],
        "items": [[numbers[place], *rest] for place, *rest in items], "samples": samples, "prompts": prompts,
        "files": {name: contents.sizes[name] for name in sorted(files)},
    }  # fmt: skip
    write_json(root / MANIFEST, manifest)
    for number in range(world_size):
        (root / f"part-{number}.json").unlink(missing_ok=True)


def _parts(root: Path, world_size: int) -> Iterator[dict[str, Any]]:
    for number in range(world_size):
        part = read_json_object(root / f"part-{number}.json")
        if part is None:
            raise ValueError(
                f"Process {number} left no result in `{root}`. All processes must see the same folder and end "
                f"together."
            )
        yield part
