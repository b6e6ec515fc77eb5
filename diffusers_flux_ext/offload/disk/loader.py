"""Load blocks from disk through host memory to the device, reading ahead."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from .files import FileReader
from .weights import StreamedBlock


@dataclass
class DiskStreamingStats:
    """Statistics of a stream.

    Attributes:
        bytes_read (`int`): Bytes read from disk.
        blocks_read (`int`): Blocks read from disk.
        read_seconds (`float`): Time spent reading, in the background.
        wait_seconds (`float`): Time that computation waited for blocks.
        blocks_waited (`int`): Blocks that were not ready when they were needed.
        blocks_unused (`int`): Blocks that were read ahead but not used.
        bytes_copied (`int`): Bytes copied from host memory to where blocks compute.
    """

    bytes_read: int = 0
    blocks_read: int = 0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0
    blocks_waited: int = 0
    blocks_unused: int = 0
    bytes_copied: int = 0


class Slot:
    """A buffer on the onload device for one block."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.released: torch.cuda.Event | None = None
        # The memory may have been freed by work that is still going on.
        self.release()

    def release(self) -> None:
        """Mark the work enqueued so far as the last that uses the buffer's content."""
        if self.buffer.is_cuda:
            self.released = torch.cuda.current_stream(self.buffer.device).record_event()


class _Reader:
    """Reads blocks into staging buffers in host memory, one block ahead, in a thread of its own.

    Args:
        reader (`FileReader`): Reads the files.
        buffers (`Sequence[torch.Tensor]`): One, or two to read ahead.
        stats (`DiskStreamingStats`): Counts.
    """

    def __init__(self, reader: FileReader, buffers: Sequence[Tensor], stats: DiskStreamingStats) -> None:
        self.reader, self.buffers, self.stats = reader, list(buffers), stats
        self._free = list(buffers)
        self._ahead: tuple[StreamedBlock, Tensor, Future[Tensor]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk-reading")

    def take(self, block: StreamedBlock) -> tuple[Tensor, Tensor | None]:
        """Return the bytes of a block in host memory, and the staging buffer that holds them."""
        if block.kept is not None:
            return block.kept, None
        if self._ahead is not None and self._ahead[0] is block:
            _, buffer, reading = self._ahead
            self._ahead = None
        else:
            # Not pinned where it stays: sizes of pinned memory are rounded up, which the budget does not allow for.
            buffer = torch.empty(block.size, dtype=torch.uint8) if block.keep else self._free.pop()
            reading = self._thread.submit(self.read, block, buffer)
        try:
            reading.result()
        except BaseException:
            self.give_back(None if block.keep else buffer)
            raise
        if block.keep:
            block.kept = buffer
            return buffer, None
        return buffer, buffer

    def give_back(self, buffer: Tensor | None) -> None:
        """Mark a staging buffer as free."""
        if buffer is not None:
            self._free.append(buffer)

    def read_ahead(self, block: StreamedBlock | None) -> None:
        """Start reading the next block that has to come from disk."""
        if block is None or len(self.buffers) < 2 or (self._ahead is not None and self._ahead[0] is block):
            return
        if self._ahead is not None:
            self._ahead[2].exception()
            self.give_back(self._ahead[1])
        buffer = self._free.pop()
        self._ahead = (block, buffer, self._thread.submit(self.read, block, buffer))

    def read(self, block: StreamedBlock, buffer: Tensor) -> Tensor:
        """Read a block into a buffer."""
        start = time.perf_counter()
        self.stats.bytes_read += self.reader.read(block.pieces, buffer)
        self.stats.read_seconds += time.perf_counter() - start
        self.stats.blocks_read += 1
        return buffer

    def close(self) -> None:
        """Wait for the current read."""
        self._thread.shutdown()


class Loader:
    """Loads blocks from disk, or from host memory where they are kept there, to the device, in a thread of its own.

    On the CPU blocks are read to where they compute. Otherwise they pass through staging buffers, which are pinned
    where the device can copy from such memory on the side.
    """

    def __init__(self, reader: FileReader, device: torch.device, staging: Sequence[int], stats: DiskStreamingStats):
        is_cuda = device.type == "cuda"
        self.device, self.stats = device, stats
        self.staged = bool(staging)
        buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda) for size in staging]
        self.reader = _Reader(reader, buffers, stats)
        self.stream = torch.cuda.Stream(device) if is_cuda else None

    @torch.no_grad()
    def load(self, block: StreamedBlock, slot: Slot | None, coming: StreamedBlock | None) -> Tensor:
        """Return the bytes of a block on the device."""
        if self.staged and slot is not None:
            data = self._through_host(block, slot, coming)
        else:
            data = self._directly(block, slot)
        if block.resident:
            block.on_device = data
        return data

    def _directly(self, block: StreamedBlock, slot: Slot | None) -> Tensor:
        if block.kept is not None:
            return block.kept
        buffer = torch.empty(block.size, dtype=torch.uint8) if block.keep or slot is None else slot.buffer
        data = self.reader.read(block, buffer)
        if block.keep:
            block.kept = data
        return data

    def _through_host(self, block: StreamedBlock, slot: Slot, coming: StreamedBlock | None) -> Tensor:
        host, buffer = self.reader.take(block)
        self.reader.read_ahead(coming)
        try:
            self._copy(host[: block.size], slot)
        finally:
            self.reader.give_back(buffer)
        return slot.buffer

    def _copy(self, host: Tensor, slot: Slot) -> None:
        # Only this thread waits: first for the last use of the slot, then for its own copy. So what it returns is
        # complete, and the staging buffer is free again.
        self.stats.bytes_copied += host.nbytes
        if self.stream is None:
            slot.buffer[: len(host)].copy_(host)
            return
        if slot.released is not None:
            slot.released.synchronize()
        with torch.cuda.stream(self.stream):
            slot.buffer[: len(host)].copy_(host, non_blocking=True)
        self.stream.synchronize()
