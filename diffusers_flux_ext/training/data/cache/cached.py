"""Reading a cache: no text encoder, no VAE, no image files."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ...batch import TrainingSample
from .encoding import Prompt
from .files import read_json_object
from .keys import VERSION


MANIFEST = "manifest.json"

_PARTS = {"entries": list, "items": list, "samples": dict, "prompts": dict, "files": dict, "text_length": int}


class CachedSamples:
    """The samples of a folder that [`cache_samples`] filled. It can be sent to other processes.

    Args:
        folder (`str` or `os.PathLike`): The folder.

    Raises:
        FileNotFoundError: if there is no finished cache.
        ValueError: if files are missing or were cut off.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = read_json_object(self.folder / MANIFEST)
        if manifest is None or manifest.get("version") != VERSION:
            raise FileNotFoundError(
                f"`{folder}` has no finished cache of version {VERSION}: `{MANIFEST}` is missing or of another "
                f"version. Run the caching, which goes on where it stopped."
            )
        broken = [name for name, kind in _PARTS.items() if not isinstance(manifest.get(name), kind)]
        if broken:
            raise ValueError(f"`{self.folder / MANIFEST}` is broken: it lacks {broken}. Run the caching again.")
        self._manifest: dict[str, Any] = manifest
        self._check_files()
        self._open: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        return len(self._manifest["items"])

    @property
    def files(self) -> Mapping[str, int]:
        """Bytes of each file that is used."""
        sizes: dict[str, int] = self._manifest["files"]
        return sizes

    @property
    def conditions(self) -> str:
        """The hash of what [`cache_samples`] was told of the conditions."""
        return str(self._manifest["conditions"])

    def texts(self, index: int) -> list[str]:
        """Return all captions of a sample, without the empty one.

        Args:
            index (`int`): Its number.

        Returns:
            `list[str]`
        """
        found: list[str] = self._entry(index)["texts"]
        return found

    def name(self, index: int) -> str:
        """Return the row that a sample was made of."""
        return str(self._entry(index)["name"])

    def key(self, index: int) -> Hashable:
        """Return the bucket of a sample: what [`TrainingSample.signature`] returns for it."""
        about = self._manifest["samples"][self._entry(index)["keys"][0]]
        shapes = tuple(
            tuple(sorted((name, tuple(shape)) for name, shape in encoded.items())) for encoded in about["shapes"]
        )
        return about["height"], about["width"], (self._manifest["text_length"],), not about["mask"], shapes

    def content(self, index: int, epoch: int, text: str) -> tuple[str, str]:
        """Return the names by content of a visit of a sample, and of one of its captions.

        Args:
            index (`int`): The sample's number.
            epoch (`int`): Which visit; variants of a varying transform take turns.
            text (`str`): The caption.

        Returns:
            `tuple[str, str]`: they depend on the files, what was done to them, the models and the options alone.

        Raises:
            IndexError: if there is no such sample.
            KeyError: if the caption is not stored.
        """
        entry = self._entry(index)
        _, repeat, repeats = self._manifest["items"][index]
        key: str = entry["keys"][(epoch * repeats + repeat) % len(entry["keys"])]
        return key, entry["prompts"][text]

    def sample(self, index: int, epoch: int = 0, texts: Sequence[str] | None = None) -> TrainingSample:
        """Read a sample.

        Args:
            index (`int`): Its number.
            epoch (`int`, defaults to 0): Which visit; variants of a varying transform take turns.
            texts (`Sequence[str]`, *optional*):
                Which captions to read; by default all of the sample's and the empty one.

        Returns:
            `TrainingSample`

        Raises:
            IndexError: if there is no such sample.
            KeyError: if a caption is not stored.
        """
        entry = self._entry(index)
        key, _ = self.content(index, epoch, "")
        about = self._manifest["samples"][key]
        file, start = self._shard(about["file"]), f"samples/{key}"
        conditions = tuple(
            {name: file.get_tensor(f"{start}/conditions/{place}/{name}") for name in shapes}
            for place, shapes in enumerate(about["shapes"])
        )
        stored = entry["prompts"]
        return TrainingSample(
            index,
            about["height"],
            about["width"],
            file.get_tensor(f"{start}/latents"),
            {text: self._prompt(stored[text]) for text in (stored if texts is None else texts)},
            conditions,
            file.get_tensor(f"{start}/deviation") if about["deviation"] else None,
            file.get_tensor(f"{start}/mask") if about["mask"] else None,
            entry["weight"],
            entry["preserved"],
            strength=entry.get("strength", 1.0),
        )

    def fetch(self, index: int, epoch: int, texts: Sequence[str]) -> TrainingSample:
        """Read a sample in a loader's process; see [`Samples`]."""
        return self.sample(index, epoch, texts)

    def finish(self, fetched: Any, texts: Sequence[str]) -> TrainingSample:
        """Return what `fetch` returned; see [`Samples`]."""
        sample: TrainingSample = fetched
        return sample

    def _entry(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"`{self.folder}` has {len(self)} samples, numbered from 0, got {index}.")
        entry: dict[str, Any] = self._manifest["entries"][self._manifest["items"][index][0]]
        return entry

    def _prompt(self, key: str) -> Prompt:
        file = self._shard(self._manifest["prompts"][key])
        hidden_states: torch.Tensor = file.get_tensor(f"prompts/{key}/hidden_states")
        return hidden_states, file.get_tensor(f"prompts/{key}/pooled")

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / Path(name).name, framework="pt")
        return self._open[name]

    def _check_files(self) -> None:
        for name, size in self._manifest["files"].items():
            path = self.folder / Path(name).name
            if not path.is_file() or path.stat().st_size != size:
                raise ValueError(
                    f"`{path}` is missing or was cut off; the cache says {size} bytes. Run the caching again, which "
                    f"makes only what is missing."
                )
