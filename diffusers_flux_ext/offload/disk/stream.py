"""Reading blocks ahead of their use, into buffers that are used again."""

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
    """
    What streaming has done so far.

    Attributes:
        bytes_read (`int`): Bytes read from disk.
        blocks_read (`int`): Blocks read from disk.
        read_seconds (`float`): Time spent reading, in the background.
        wait_seconds (`float`): Time in which computing had to wait for a block.
        blocks_waited (`int`): Blocks that were not ready when they were needed.
        blocks_unused (`int`): Blocks that were read ahead in vain.
    """

    bytes_read: int = 0
    blocks_read: int = 0
    read_seconds: float = 0.0
    wait_seconds: float = 0.0
    blocks_waited: int = 0
    blocks_unused: int = 0


class _Slot:
    """A buffer on the onload device for one block."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.released: torch.cuda.Event | None = None
        # The memory may have been freed by work that is still going on.
        self.release()

    def release(self) -> None:
        """Mark that what was enqueued so far is the last to use the buffer's content."""
        if self.buffer.is_cuda:
            self.released = torch.cuda.current_stream(self.buffer.device).record_event()


class _Loader:
    """Brings blocks from disk, or from the memory that they are kept in, into slots. Runs in a thread of its own."""

    def __init__(
        self, reader: FileReader, device: torch.device, staging_size: int | None, stats: DiskStreamingStats
    ) -> None:
        self.reader, self.device, self.stats = reader, device, stats
        is_cuda = device.type == "cuda"
        self.staging: Tensor | None = None
        if staging_size is not None:
            self.staging = torch.empty(staging_size, dtype=torch.uint8, pin_memory=is_cuda)
        self.stream = torch.cuda.Stream(device) if is_cuda else None

    @torch.no_grad()
    def load(self, block: StreamedBlock, slot: _Slot | None) -> Tensor:
        """The bytes of a block on the device."""
        if self.staging is None or slot is None:
            return self._on_host(block, slot.buffer if slot else None)
        host = self._on_host(block, self.staging)
        if self.stream is None:
            slot.buffer[: block.size].copy_(host[: block.size])
        else:
            self._copy(host[: block.size], slot)
        return slot.buffer

    def _copy(self, host: Tensor, slot: _Slot) -> None:
        # Only this thread waits: first for the last use of the slot, then for its own copy. So what it returns is
        # complete, and the staging buffer is free again.
        if slot.released is not None:
            slot.released.synchronize()
        with torch.cuda.stream(self.stream):
            slot.buffer[: len(host)].copy_(host, non_blocking=True)
        self.stream.synchronize()  # type: ignore[union-attr]

    def _on_host(self, block: StreamedBlock, buffer: Tensor | None) -> Tensor:
        if block.kept is not None:
            return block.kept
        # Not pinned: sizes of pinned memory are rounded up to powers of two, which the budget does not allow for.
        target = torch.empty(block.size, dtype=torch.uint8) if block.keep or buffer is None else buffer
        start = time.perf_counter()
        self.stats.bytes_read += self.reader.read(block.pieces, target)
        self.stats.read_seconds += time.perf_counter() - start
        self.stats.blocks_read += 1
        if block.keep:
            block.kept = target
        return target


@dataclass
class _Pending:
    data: Future[Tensor]
    slot: _Slot | None


class DiskStream:
    """
    Has the weights of one block in place, and reads the next ones.

    Args:
        blocks (`Sequence[StreamedBlock]`): The blocks, in the order of their use.
        reader (`FileReader`): Reads their files.
        device (`torch.device`): Where they compute.
        read_ahead (`int`): How many blocks are read ahead.
    """

    def __init__(
        self, blocks: Sequence[StreamedBlock], reader: FileReader, device: torch.device, read_ahead: int
    ) -> None:
        self.blocks, self.reader, self.device, self.read_ahead = blocks, reader, device, read_ahead
        self.stats = DiskStreamingStats()
        self.current: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="disk-streaming")
        self._pending: dict[int, _Pending] = {}
        self._following = {index: (index + 1) % len(blocks) for index in range(len(blocks))}
        self._start()

    def _start(self) -> None:
        self._size = max((block.size for block in self.blocks if self._needs_slot(block)), default=0)
        self._loader: _Loader | None = None
        self._free: list[_Slot] = []
        self._slot: _Slot | None = None
        self._scratch: Tensor | None = None

    @property
    def _staged(self) -> bool:
        """Whether blocks pass through host memory on their way."""
        return self.device.type != "cpu"

    def _needs_slot(self, block: StreamedBlock) -> bool:
        # Kept blocks compute from where they are kept, if that is on the device.
        return self._staged or not block.keep

    def need(self, index: int) -> None:
        """
        Puts the weights of a block in place, and takes those of the block before away.

        Args:
            index (`int`): The block.

        Raises:
            RuntimeError: If gradients are on, or a file was changed or cut off.
        """
        if index == self.current:
            return
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"Block `{self.blocks[index].name}` is streamed from disk, so its weights are gone before a backward "
                "pass could use them. Call the module under `torch.no_grad()`, or `stop_disk_streaming(module)` first."
            )
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._switch(index)

    def _switch(self, index: int) -> None:
        previous = self.current
        self._take_away()
        if self._loader is None:
            self._loader = _Loader(self.reader, self.device, self._size if self._staged else None, self.stats)
            slots = min(self.read_ahead + 1, sum(map(self._needs_slot, self.blocks)))
            self._free = [_Slot(self._size, self.device) for _ in range(slots)]
        if previous is not None:
            self._following[previous] = index
        kept = None if self._needs_slot(self.blocks[index]) else self.blocks[index].kept
        if kept is not None:
            self._read_ahead(index)
            return self._install(index, kept, None)
        pending = self._pending.pop(index, None) or self._submit(index)
        self._read_ahead(index)
        self._install(index, self._wait(pending), pending.slot)

    def _wait(self, pending: _Pending) -> Tensor:
        start = time.perf_counter()
        self.stats.blocks_waited += not pending.data.done()
        try:
            return pending.data.result()
        except BaseException:
            self._give_back(pending)
            raise
        finally:
            self.stats.wait_seconds += time.perf_counter() - start

    def _give_back(self, pending: _Pending) -> None:
        if pending.slot is not None:
            # An interrupted wait leaves the read running, and its buffer must not be used before it ends.
            if not pending.data.cancel():
                pending.data.exception()
            self._free.append(pending.slot)

    def _submit(self, index: int) -> _Pending:
        """Start to read a block that is needed now."""
        block = self.blocks[index]
        slot = None
        if self._needs_slot(block):
            for other in list(self._pending):
                # What waits in the queue would delay this block.
                if self._pending[other].data.cancel():
                    self._give_back(self._pending.pop(other))
            if not self._free:
                self._drop_pending(next(iter(self._pending)))
            slot = self._free.pop()
        return self._load(block, slot)

    def _load(self, block: StreamedBlock, slot: _Slot | None) -> _Pending:
        assert self._loader is not None
        return _Pending(self._thread.submit(self._loader.load, block, slot), slot)

    def _drop_pending(self, index: int) -> None:
        pending = self._pending.pop(index)
        if not pending.data.cancel():
            self.stats.blocks_unused += 1
        self._give_back(pending)

    def _next(self, index: int) -> list[int]:
        """The blocks that will have to be brought next."""
        found: list[int] = []
        following = index
        for _ in self.blocks:
            following = self._following[following]
            if following == index or len(found) == self.read_ahead:
                break
            block = self.blocks[following]
            if following not in found and (self._needs_slot(block) or block.kept is None):
                found.append(following)
        return found

    def _read_ahead(self, index: int) -> None:
        wanted = self._next(index)
        for following in wanted:
            if following in self._pending:
                continue
            slot = None
            if self._needs_slot(self.blocks[following]):
                stale = [other for other in self._pending if other not in wanted and self._pending[other].slot]
                if not self._free and stale:
                    self._drop_pending(stale[0])
                if not self._free:
                    return
                slot = self._free.pop()
            self._pending[following] = self._load(self.blocks[following], slot)

    def _install(self, index: int, data: Tensor, slot: _Slot | None) -> None:
        block = self.blocks[index]
        self.current, self._slot = index, slot
        position = 0
        for weight in block.weights:
            value = weight.stored(data)
            if weight.dtype != weight.stored_dtype:
                size = weight.numel * weight.dtype.itemsize
                target = self._cast_buffer()[position : position + size].view(weight.dtype).view(weight.shape)
                value = target.copy_(value)
                position += -(-size // 64) * 64
            weight.put(value)

    def _cast_buffer(self) -> Tensor:
        if self._scratch is None:
            size = max(block.cast_size for block in self.blocks)
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._scratch

    def _take_away(self) -> None:
        if self.current is None:
            return
        for weight in self.blocks[self.current].weights:
            weight.take_away(self.device)
        if self._slot is not None:
            self._slot.release()
            self._free.append(self._slot)
        self.current = self._slot = None

    def release(self) -> None:
        """Gives all buffers back to the system. Kept blocks stay; the next call brings the buffers back."""
        self._take_away()
        for index in list(self._pending):
            self._drop_pending(index)
        self._start()

    def move(self, device: torch.device) -> None:
        """Have the blocks compute on another device from now on. What is kept in host memory stays there."""
        self.release()
        self.device = device
        self._start()

    def close(self) -> None:
        """Ends the thread and closes the files."""
        self.release()
        self._thread.shutdown()
        self.reader.close()
