"""Where each tensor lies in safetensors files, and which pieces of the files hold a block."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Tensors start at multiples of this in a buffer, unless they lie closer together in the file.
ALIGNMENT = 64
# Reading over a gap of this size is faster than starting a read of its own.
LARGEST_GAP = 2**20
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class StoredTensor:
    """
    A tensor of a safetensors file.

    Attributes:
        name (`str`): Its key.
        path (`Path`): The file.
        dtype (`torch.dtype`): Its data type in the file.
        shape (`tuple[int, ...]`): Its shape.
        start (`int`): Its first byte, counted from the beginning of the file.
        stop (`int`): The byte after its last.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """A run of bytes of a file that is read at once, and where it goes in a buffer."""

    path: Path
    start: int
    stop: int
    position: int


def read_layout(source: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """
    Where the tensors of a model lie. No tensor is read.

    Args:
        source (`str` or `os.PathLike`):
            A safetensors file, or a folder as `save_pretrained` writes it: one safetensors file, or several and an
            index.

    Returns:
        `dict[str, StoredTensor]`: The tensors by key.

    Raises:
        FileNotFoundError: If there is nothing, or a file of the index is missing.
        ValueError: If a header is broken, does not fit its file's size, or disagrees with the index.
    """
    source = Path(source)
    if source.is_file():
        return _read_header(source)
    if not source.is_dir():
        raise FileNotFoundError(f"There is no file or folder `{source}`. Pass a local path.")
    indices = sorted(source.glob("*.safetensors.index.json"))
    files = sorted(source.glob("*.safetensors"))
    if len(indices) == 1:
        return _read_index(indices[0])
    if indices or len(files) != 1:
        found = [path.name for path in [*indices, *files]]
        raise ValueError(
            f"`{source}` should hold one safetensors file, or one index of several; found {found or 'none'}. Pass "
            "the path of a single file, or a folder as `save_pretrained` writes it."
        )
    return _read_header(files[0])


def _read_index(path: Path) -> dict[str, StoredTensor]:
    index = json.loads(path.read_text())["weight_map"]
    tensors: dict[str, StoredTensor] = {}
    for name in sorted(set(index.values())):
        if not (path.parent / name).is_file():
            raise FileNotFoundError(f"`{path}` names the file `{name}`, which is missing. Download the folder anew.")
        tensors.update(_read_header(path.parent / name))
    if tensors.keys() != index.keys() or any(tensors[key].path.name != name for key, name in index.items()):
        raise ValueError(f"`{path}` disagrees with the files beside it: it belongs to other files than these.")
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LARGEST_HEADER, size - 8):
            raise ValueError(f"`{path}` is no whole safetensors file: its header would be longer than the file.")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _entry(name, entry, path, 8 + length) for name, entry in header.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"The safetensors header of `{path}` is broken: {error}") from error
    end = max((tensor.stop for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise ValueError(
            f"`{path}` has {size} bytes where its header says {end}: it was cut off or changed. Write or download it "
            "anew."
        )
    return tensors


def _entry(name: str, entry: Mapping[str, Any], path: Path, base: int) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"`{name}` has data type {entry['dtype']}, which cannot be streamed")
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if not 0 <= start <= stop or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"`{name}` of shape {shape} and {dtype} cannot lie at bytes {start} to {stop}")
    return StoredTensor(name, path, dtype, shape, base + start, base + stop)


def plan_pieces(tensors: Iterable[StoredTensor]) -> tuple[list[Piece], dict[str, int], int]:
    """
    The reads that bring some tensors into one buffer; neighbours in a file are read together.

    Args:
        tensors (`Iterable[StoredTensor]`): The tensors.

    Returns:
        `tuple`: the reads, each tensor's position in the buffer by key, and the buffer's size in bytes.
    """
    pieces: list[Piece] = []
    positions: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (str(tensor.path), tensor.start)):
        last = pieces[-1] if pieces else None
        # A view of a dtype must start at a multiple of its size, which headers of odd length upset.
        if last and last.path == tensor.path and tensor.start - last.stop <= LARGEST_GAP:
            position = last.position + tensor.start - last.start
            if position % tensor.dtype.itemsize == 0:
                pieces[-1] = Piece(last.path, last.start, tensor.stop, last.position)
                positions[tensor.name], end = position, position + tensor.stop - tensor.start
                continue
        position = -(-end // ALIGNMENT) * ALIGNMENT
        pieces.append(Piece(tensor.path, tensor.start, tensor.stop, position))
        positions[tensor.name], end = position, position + tensor.stop - tensor.start
    return pieces, positions, end


def byte_view(buffer: torch.Tensor) -> memoryview:
    """The memory of a contiguous one-dimensional `uint8` tensor on the CPU."""
    array: Any = buffer.numpy()
    return memoryview(array)


class FileReader:
    """
    Reads pieces of files into buffers that stay the same, and leaves nothing in the page cache.

    A memory map would be simpler, but its pages count as resident and it reads in small steps. One thread may use it
    at a time.

    Args:
        paths (`Iterable[Path]`): The files; they stay open, so that a file that takes the place of one is not read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: path.open("rb", buffering=0) for path in sorted(set(paths))}
        self._stats = {path: self._stat(path) for path in self._files}

    def _stat(self, path: Path) -> tuple[int, int]:
        stat = os.fstat(self._files[path].fileno())
        return stat.st_size, stat.st_mtime_ns

    def read(self, pieces: Iterable[Piece], buffer: torch.Tensor) -> int:
        """Reads `pieces` into a `uint8` buffer on the CPU; returns the number of bytes. A changed file raises."""
        target = byte_view(buffer)
        count = 0
        for piece in pieces:
            if self._stat(piece.path) != self._stats[piece.path]:
                raise RuntimeError(
                    f"`{piece.path}` was changed while it was streamed from. Stop streaming and start it again."
                )
            self._read_piece(piece, target[piece.position : piece.position + piece.stop - piece.start])
            count += piece.stop - piece.start
        return count

    def _read_piece(self, piece: Piece, target: memoryview) -> None:
        file = self._files[piece.path]
        file.seek(piece.start)
        done = 0
        while done < len(target):
            got = file.readinto(target[done:])
            if not got:
                raise RuntimeError(f"`{piece.path}` ends before byte {piece.stop}: it was cut off while streaming.")
            done += got
        if hasattr(os, "posix_fadvise"):
            # These pages would be gone before they are needed again, and push others out.
            os.posix_fadvise(file.fileno(), piece.start, len(target), os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
