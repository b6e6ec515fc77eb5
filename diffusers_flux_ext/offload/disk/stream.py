"""Reading blocks ahead of their use, into buffers that are used again."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .files import FileReader
from .weights import StreamedBlock


STREAM = "_flux_ext_disk_stream"


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


class _Reader:
    """Reads blocks into staging buffers in host memory, one of them ahead. Runs in a thread of its own.

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
        """The bytes of a block in host memory, and the staging buffer that they are in."""
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
        """A staging buffer may be used again."""
        if buffer is not None:
            self._free.append(buffer)

    def read_ahead(self, block: StreamedBlock | None) -> None:
        """Start to read the block that will have to come from disk next."""
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
        """Wait for the read under way."""
        self._thread.shutdown()


class _Loader:
    """Brings blocks from disk, or from the memory that they are kept in, to the device. Runs in a thread of its own.

    On the CPU blocks are read to where they compute. Otherwise they pass through staging buffers, which are pinned
    where the device can copy from such memory on the side.
    """

    def __init__(self, reader: FileReader, device: torch.device, staging: Sequence[int], stats: DiskStreamingStats):
        is_cuda = device.type == "cuda"
        self.device = device
        self.staged = bool(staging)
        buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda) for size in staging]
        self.reader = _Reader(reader, buffers, stats)
        self.stream = torch.cuda.Stream(device) if is_cuda else None

    @torch.no_grad()
    def load(self, block: StreamedBlock, slot: _Slot | None, coming: StreamedBlock | None) -> Tensor:
        """The bytes of a block on the device."""
        data = self._through_host(block, slot, coming) if self.staged else self._directly(block, slot)
        if block.resident:
            block.on_device = data
        return data

    def _directly(self, block: StreamedBlock, slot: _Slot | None) -> Tensor:
        if block.kept is not None:
            return block.kept
        own = block.keep or slot is None
        data = self.reader.read(block, torch.empty(block.size, dtype=torch.uint8) if own else slot.buffer)  # type: ignore[union-attr]
        if block.keep:
            block.kept = data
        return data

    def _through_host(self, block: StreamedBlock, slot: _Slot | None, coming: StreamedBlock | None) -> Tensor:
        host, buffer = self.reader.take(block)
        self.reader.read_ahead(coming)
        try:
            target = torch.empty(block.size, dtype=torch.uint8, device=self.device) if slot is None else slot.buffer
            self._copy(host[: block.size], target, slot)
        finally:
            self.reader.give_back(buffer)
        return target

    def _copy(self, host: Tensor, target: Tensor, slot: _Slot | None) -> None:
        # Only this thread waits: first for the last use of the slot, then for its own copy. So what it returns is
        # complete, and the staging buffer is free again.
        if self.stream is None:
            target[: len(host)].copy_(host)
            return
        if slot is not None and slot.released is not None:
            slot.released.synchronize()
        with torch.cuda.stream(self.stream):
            target[: len(host)].copy_(host, non_blocking=True)
        self.stream.synchronize()


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
        read_ahead (`int`): How many blocks are brought to the device ahead.
        staging (`int`): How many buffers in host memory blocks pass through on their way to another device: 2 read
            ahead of what is brought there.

    Attributes:
        before (`tuple`, *optional*): Where blocks were before [`~DiskStream.place`], while that holds.
        written (`bool`): Whether the files were written for a VRAM budget, and weights belong in memory without it.
    """

    def __init__(
        self,
        blocks: Sequence[StreamedBlock],
        reader: FileReader,
        device: torch.device,
        read_ahead: int,
        staging: int = 2,
    ) -> None:
        self.blocks, self.reader, self.device, self.read_ahead = blocks, reader, device, read_ahead
        self.staging, self.written = staging, False
        self.before: tuple[int, int, frozenset[str]] | None = None
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
    def stored_dtypes(self) -> set[torch.dtype]:
        """The data types of the files' weights."""
        return {weight.stored_dtype for block in self.blocks for weight in block.weights}

    @property
    def _staged(self) -> bool:
        """Whether blocks pass through host memory on their way."""
        return self.device.type != "cpu"

    def _needs_slot(self, block: StreamedBlock) -> bool:
        return not block.resident and (self._staged or not block.keep)

    def _there(self, block: StreamedBlock) -> Tensor | None:
        """The bytes of a block that stays on the device."""
        # Kept blocks compute from where they are kept, if that is on the device.
        return block.on_device if self._staged or block.kept is None else block.kept

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
            self._loader = _Loader(self.reader, self.device, self._staging_sizes(), self.stats)
            slots = min(self.read_ahead + 1, sum(map(self._needs_slot, self.blocks)))
            self._free = [_Slot(self._size, self.device) for _ in range(slots)]
        if previous is not None:
            self._following[previous] = index
        there = self._there(self.blocks[index])
        if there is not None:
            self._read_ahead(index)
            return self._install(index, there, None)
        pending = self._pending.pop(index, None) or self._submit(index)
        self._read_ahead(index)
        self._install(index, self._wait(pending), pending.slot)

    def _staging_sizes(self) -> list[int]:
        read = [block.size for block in self.blocks if not block.keep]
        return [max(read, default=0)] * self.staging if self._staged else []

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
        # An interrupted wait leaves the read running, and its buffer must not be used before it ends.
        if not pending.data.cancel():
            pending.data.exception()
        if pending.slot is not None:
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
        return self._load(index, slot)

    def _load(self, index: int, slot: _Slot | None) -> _Pending:
        assert self._loader is not None
        return _Pending(self._thread.submit(self._loader.load, self.blocks[index], slot, self._coming(index)), slot)

    def _coming(self, index: int) -> StreamedBlock | None:
        """The block after one that will have to come from disk."""
        following = self._following[index]
        for _ in self.blocks:
            block = self.blocks[following]
            # One that is kept is read into memory of its own, once.
            if following != index and not block.keep and block.on_device is None:
                return block
            following = self._following[following]
        return None

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
            if following not in found and self._there(block) is None:
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
            self._pending[following] = self._load(following, slot)

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
        if self._loader is not None:
            self._loader.reader.close()
        self._start()

    def evict(self, names: Collection[str] | None = None) -> bool:
        """
        Give back what blocks take on the device.

        Args:
            names (`Collection[str]`, *optional*): The blocks that leave; all by default.

        Returns:
            `bool`: Whether there was anything.
        """
        had_buffers = self._loader is not None
        self.release()
        leaving = [
            block for block in self.blocks if block.on_device is not None and (names is None or block.name in names)
        ]
        for block in leaving:
            block.on_device = None
        return had_buffers or bool(leaving)

    def place(self, device: torch.device, read_ahead: int, resident: Collection[str], kept: Collection[str]) -> None:
        """
        Have blocks stay where a plan says, until [`~DiskStream.unplace`].

        Args:
            device (`torch.device`): Where they compute.
            read_ahead (`int`): How many are brought there ahead.
            resident (`Collection[str]`): Names of those that stay there.
            kept (`Collection[str]`): Names of those that stay in host memory.
        """
        self.evict()
        if self.before is None:
            names = frozenset(block.name for block in self.blocks if block.keep)
            self.before = (self.read_ahead, self.staging, names)
        self.read_ahead, self.staging = read_ahead, 2
        self._place(device, resident, kept)

    def unplace(self) -> None:
        """Have blocks be read as they were before, and compute on the CPU."""
        self.evict()
        if self.before is not None:
            self.read_ahead, self.staging, kept = self.before
            self.before = None
            self._place(torch.device("cpu"), (), kept)

    def _place(self, device: torch.device, resident: Collection[str], kept: Collection[str]) -> None:
        for block in self.blocks:
            block.resident, block.keep = block.name in resident, block.name in kept
            block.kept = block.kept if block.keep else None
        self.move(device)
        for block in self.blocks:
            for weight in block.weights:
                weight.take_away(device)

    def move(self, device: torch.device) -> None:
        """Have the blocks compute on another device from now on. What is kept in host memory stays there."""
        self.evict()
        self.device = device
        self._start()

    def close(self) -> None:
        """Ends the thread and closes the files."""
        self.release()
        self._thread.shutdown()
        self.reader.close()


def stream_of(module: nn.Module) -> DiskStream | None:
    """
    The stream that reads the blocks of a module.

    Args:
        module (`nn.Module`): The module itself, not one of its parts.

    Returns:
        `DiskStream` or `None`
    """
    return module.__dict__.get(STREAM)
