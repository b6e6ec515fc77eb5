"""Locate the bytes of a block in safetensors files, and read them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.stored import StoredTensor


# Tensors start at multiples of this in a buffer, unless they lie closer together in the file.
ALIGNMENT = 64
# Reading over a gap of this size is faster than starting a read of its own.
LARGEST_GAP = 2**20


@dataclass(frozen=True)
class Piece:
    """A run of bytes of a file that is read at once, and its place in a buffer."""

    path: Path
    start: int
    stop: int
    position: int


def plan_pieces(tensors: Iterable[StoredTensor]) -> tuple[list[Piece], dict[str, int], int]:
    """Plan the reads that load tensors into one buffer; neighbours in a file are read together.

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
    """Return the memory of a contiguous one-dimensional `uint8` tensor on the CPU."""
    array: Any = buffer.numpy()
    return memoryview(array)


class FileReader:
    """Reads pieces of files into reused buffers, and leaves nothing in the page cache.

    A memory map would be simpler, but its pages count as resident and it reads in small steps. One thread may use it
    at a time.

    Args:
        paths (`Iterable[Path]`): The files. They stay open, so that a file that replaces one of them is not read.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: path.open("rb", buffering=0) for path in sorted(set(paths))}
        self._stats = {path: self._stat(path) for path in self._files}

    def _stat(self, path: Path) -> tuple[int, int]:
        stat = os.fstat(self._files[path].fileno())
        return stat.st_size, stat.st_mtime_ns

    def read(self, pieces: Iterable[Piece], buffer: torch.Tensor) -> int:
        """Read `pieces` into a `uint8` CPU buffer and return the number of bytes; raise if a file was changed."""
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
        """Close the files."""
        for file in self._files.values():
            file.close()
