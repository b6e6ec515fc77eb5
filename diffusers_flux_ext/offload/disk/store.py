"""Files for streaming, named by their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoints.reading import DTYPE_CODES
from ...checkpoints.stored import StoredTensor, read_layout
from ...checkpoints.writing import written_at_once
from .files import byte_view


_CHUNK = 32 * 2**20


@dataclass(frozen=True)
class WeightToStore:
    """A weight to write.

    Attributes:
        name (`str`): Its key.
        dtype (`torch.dtype`): Its data type in the file.
        shape (`tuple[int, ...]`): Its shape.
        get (`Callable[[], torch.Tensor]`): Returns its value, in any data type and on any device.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    def bytes(self) -> memoryview:
        """Return its bytes as they are stored."""
        tensor = self.get().detach().to("cpu", self.dtype).contiguous()
        return byte_view(tensor.flatten().view(torch.uint8))


def store_weights(weights: list[WeightToStore], folder: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Write weights to a safetensors file named by their content, unless it exists already.

    Other weights get another name. An existing file is read and compared first; a new file is read back before it
    gets its name. Only one weight at a time is in memory.

    Args:
        weights (`list[WeightToStore]`):
            The weights, in the order in which they will be read.
        folder (`str` or `os.PathLike`):
            Folder of such files; created if it does not exist.

    Returns:
        `dict[str, StoredTensor]`: Location of each weight, by key.

    Raises:
        ValueError: If a file of that name was changed after it was written.
        OSError: If the file does not read back as it was written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = _header(weights)
    digest = hashlib.sha256(header)
    for weight in weights:
        digest.update(weight.bytes())
    path = folder / f"streamed-{digest.hexdigest()[:32]}.safetensors"
    if path.exists():
        if _digest(path) != digest.digest():
            raise ValueError(f"`{path}` does not hold what its name says: it was changed. Remove it.")
        return read_layout(path)
    with written_at_once(path) as temporary:
        with temporary.open("wb") as file:
            file.write(header)
            for weight in weights:
                file.write(weight.bytes())
            file.flush()
            os.fsync(file.fileno())
        if _digest(temporary) != digest.digest():
            raise OSError(f"What was written to `{folder}` does not read back as it was written. Check the disk.")
    return read_layout(path)


def _header(weights: list[WeightToStore]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + torch.Size(weight.shape).numel() * weight.dtype.itemsize
        entries[weight.name] = {
            "dtype": DTYPE_CODES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64 + 56)
    return len(text).to_bytes(8, "little") + text


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.digest()


def _chunks(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
