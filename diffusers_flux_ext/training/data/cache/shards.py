"""Files of encoded samples and captions: safetensors that say in their header what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from ....checkpoints.reading import open_safetensors
from ....checkpoints.writing import save_tensors
from ...batch import TrainingSample
from .encoding import Prompt
from .keys import VERSION, digest


logger = logging.get_logger(__name__)

SUFFIX = ".shard.safetensors"


@dataclass
class Contents:
    """What the shards of a folder hold.

    Args:
        samples (`dict[str, dict]`): By key: the file, height, width, whether there is a mask, and all shapes.
        prompts (`dict[str, str]`): By key, the file.
        sizes (`dict[str, int]`): Bytes of each file.
    """

    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class ShardWriter:
    """Collects encoded samples and captions, and writes them when they fill a file.

    Args:
        folder (`Path`): Where to.
        limit (`int`): Bytes of a file; one that is larger holds a single sample.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._clear()

    def _clear(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        self._prompts: list[str] = []
        self._bytes = 0

    def add_sample(self, key: str, sample: TrainingSample) -> None:
        """Add a sample without its captions."""
        named = {"latents": sample.latents, "deviation": sample.deviation, "mask": sample.mask}
        named |= {
            f"conditions/{place}/{name}": value
            for place, encoded in enumerate(sample.conditions)
            for name, value in encoded.items()
        }
        self._add(f"samples/{key}", {name: value for name, value in named.items() if value is not None})
        self._samples[key] = {
            "height": sample.height,
            "width": sample.width,
            "mask": sample.mask is not None,
            "deviation": sample.deviation is not None,
            "shapes": [{name: list(value.shape) for name, value in encoded.items()} for encoded in sample.conditions],
        }
        self._write_if_full()

    def add_prompt(self, key: str, prompt: Prompt) -> None:
        """Add an encoded caption."""
        self._add(f"prompts/{key}", {"hidden_states": prompt[0], "pooled": prompt[1]})
        self._prompts.append(key)
        self._write_if_full()

    def _add(self, start: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors |= {f"{start}/{name}": value for name, value in tensors.items()}
        self._bytes += sum(value.nbytes for value in tensors.values())

    def _write_if_full(self) -> None:
        if self._bytes >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected; a file is complete or not there."""
        if self._samples or self._prompts:
            about = {"version": VERSION, "samples": self._samples, "prompts": self._prompts}
            name = digest([sorted(self._samples), sorted(self._prompts)])
            path = self.folder / f"{name}{SUFFIX}"
            save_tensors(self._tensors, path, {"training_cache": json.dumps(about)})
            # The manifest must not outlive what it names, even if the power fails.
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._clear()


def read_contents(folder: Path) -> Contents:
    """Read the headers of all shards.

    Args:
        folder (`Path`): Their folder.

    Returns:
        `Contents`: without files that are broken or of another version, which are named in a warning.
    """
    found = Contents()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            about = _read_header(path)
        except (ValueError, OSError) as error:
            logger.warning(f"What `{path}` holds is made again: {error}")
            continue
        found.samples |= {key: {**entry, "file": path.name} for key, entry in about["samples"].items()}
        found.prompts |= dict.fromkeys(about["prompts"], path.name)
        found.sizes[path.name] = path.stat().st_size
    return found


def _read_header(path: Path) -> dict[str, Any]:
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get("training_cache")
    about = json.loads(text) if text else {}
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise ValueError(f"it is not a file of a training cache of version {VERSION}")
    return about


def remove_unused(folder: str | os.PathLike[str], used: Mapping[str, Any]) -> int:
    """Remove the shards of a folder that a manifest does not name.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        used (`Mapping[str, Any]`): Files that are named.

    Returns:
        `int`: bytes that were freed.
    """
    freed = 0
    for path in Path(folder).glob(f"*{SUFFIX}"):
        if path.name not in used:
            freed += path.stat().st_size
            path.unlink()
    return freed
