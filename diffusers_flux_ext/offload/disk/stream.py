"""Hold the weights of one block while the next ones are loaded."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from .files import FileReader
from .loader import DiskStreamingStats, Loader, Slot
from .weights import StreamedBlock


STREAM = "_flux_ext_disk_stream"


@dataclass
class _Pending:
    data: Future[Tensor]
    slot: Slot | None


class DiskStream:
    """Holds the weights of one block, and reads the next ones.

    Args:
        blocks (`Sequence[StreamedBlock]`): The blocks, in the order of their use.
        reader (`FileReader`): Reads their files.
        device (`torch.device`): Where they compute.
        read_ahead (`int`): Number of blocks that are loaded to the device ahead.
        staging (`int`): Number of buffers in host memory on the way to another device; 2 read one block ahead of
            the copy.
        copies (`bool`, *optional*, defaults to `False`):
            Whether blocks are copied to where they compute on a CPU, too, as on every other device.

    Attributes:
        names (`frozenset[str]`): Names of the blocks.
        before (`tuple`, *optional*): Placement before [`~DiskStream.place`], while a plan is in force.
        written (`bool`): Whether the files were written for a VRAM budget, without which weights belong in memory.
    """

    def __init__(
        self,
        blocks: Sequence[StreamedBlock],
        reader: FileReader,
        device: torch.device,
        read_ahead: int,
        staging: int = 2,
        copies: bool = False,
    ) -> None:
        self.names = frozenset(block.name for block in blocks)
        self._copies, self._heading = copies, 0
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
        self._loader: Loader | None = None
        self._free: list[Slot] = []
        self._slot: Slot | None = None
        self._scratch: Tensor | None = None

    @property
    def stored_dtypes(self) -> set[torch.dtype]:
        """Data types of the weights in the files."""
        return {weight.stored_dtype for block in self.blocks for weight in block.weights}

    @property
    def _staged(self) -> bool:
        """Whether blocks are copied from host memory to where they compute."""
        return self._copies or self.device.type != "cpu"

    def _needs_slot(self, block: StreamedBlock) -> bool:
        return not block.resident and (self._staged or not block.keep)

    def _there(self, block: StreamedBlock) -> Tensor | None:
        """Return the bytes of a block that stays on the device."""
        # Kept blocks compute from where they are kept, if that is on the device.
        return block.on_device if self._staged or block.kept is None else block.kept

    def need(self, index: int) -> None:
        """Put a block's weights in place, and remove those of the previous block.

        Args:
            index (`int`): The block.

        Raises:
            RuntimeError: If gradients are enabled outside of [`~DiskStream.heading`], or a file was changed or
                truncated.
        """
        if index == self.current:
            return
        if torch.is_grad_enabled() and not self._heading:
            raise RuntimeError(
                f"Block `{self.blocks[index].name}` is streamed, so its weights are gone before a backward pass could "
                "use them. Call the module under `torch.no_grad()`, let its blocks run again by "
                "`training.checkpointing.checkpoint_blocks`, or `stop_disk_streaming(module)` first."
            )
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._switch(index)

    def _switch(self, index: int) -> None:
        previous = self.current
        self._take_away()
        if self._loader is None:
            self._loader = Loader(self.reader, self.device, self._staging_sizes(), self.stats)
            slots = min(self.read_ahead + 1, sum(map(self._needs_slot, self.blocks)))
            self._free = [Slot(self._size, self.device) for _ in range(slots)]
        if previous is not None and not self._heading:
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
        """Start reading a block that is needed now."""
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

    def _load(self, index: int, slot: Slot | None) -> _Pending:
        assert self._loader is not None
        block = self.blocks[index]
        # Made here, so that the copy waits for work under way that used the memory before.
        target = Slot(block.size, self.device) if block.resident and self._staged else slot
        return _Pending(self._thread.submit(self._loader.load, block, target, self._coming(index)), slot)

    def _coming(self, index: int) -> StreamedBlock | None:
        """Return the next block after one that has to come from disk."""
        for following in self._expected(index):
            block = self.blocks[following]
            # One that is kept is read into memory of its own, once.
            if following != index and not block.keep and block.on_device is None:
                return block
        return None

    def _expected(self, index: int) -> Iterator[int]:
        """Return the blocks that will be needed after one, in their order."""
        if self._heading:
            last = len(self.blocks)
            # A training step goes through the blocks, and back through them.
            up, down = range(index + 1, last), range(index - 1, -1, -1)
            yield from chain(up, range(last - 1, -1, -1)) if self._heading > 0 else chain(down, range(last))
            return
        for _ in self.blocks:
            index = self._following[index]
            yield index

    @contextmanager
    def heading(self, backwards: bool) -> Iterator[None]:
        """Let blocks run with gradients inside this context: each runs again before its weights are used backwards.

        Args:
            backwards (`bool`): Whether the blocks before are needed next, instead of those after.
        """
        before, self._heading = self._heading, -1 if backwards else 1
        try:
            yield
        finally:
            self._heading = before

    def _drop_pending(self, index: int) -> None:
        pending = self._pending.pop(index)
        if not pending.data.cancel():
            self.stats.blocks_unused += 1
        self._give_back(pending)

    def _next(self, index: int) -> list[int]:
        """Return the blocks to load next."""
        found: list[int] = []
        for following in self._expected(index):
            if len(found) == self.read_ahead or (following == index and not self._heading):
                break
            block = self.blocks[following]
            if following not in (index, *found) and self._there(block) is None:
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

    def _install(self, index: int, data: Tensor, slot: Slot | None) -> None:
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
        """Free all buffers. Kept blocks stay; the next call allocates the buffers again."""
        self._take_away()
        for index in list(self._pending):
            self._drop_pending(index)
        if self._loader is not None:
            self._loader.reader.close()
        self._start()

    def evict(self, names: Collection[str] | None = None) -> bool:
        """Free the memory of blocks on the device.

        Args:
            names (`Collection[str]`, *optional*): The blocks to free; all by default.

        Returns:
            `bool`: Whether anything was freed.
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
        """Keep blocks where a plan says, until [`~DiskStream.unplace`].

        Args:
            device (`torch.device`): Where they compute.
            read_ahead (`int`): Number of blocks that are loaded there ahead.
            resident (`Collection[str]`): Names of blocks that stay there.
            kept (`Collection[str]`): Names of blocks that stay in host memory.
        """
        self.evict()
        if self.before is None:
            names = frozenset(block.name for block in self.blocks if block.keep)
            self.before = (self.read_ahead, self.staging, names)
        self.read_ahead, self.staging = read_ahead, 2
        self._place(device, resident, kept)

    def unplace(self) -> None:
        """Restore the placement from before [`~DiskStream.place`], and compute on the CPU."""
        self.evict()
        if self.before is not None:
            self.read_ahead, self.staging, kept = self.before
            self.before = None
            self._place(torch.device("cpu"), (), kept)

    def _place(self, device: torch.device, resident: Collection[str], kept: Collection[str]) -> None:
        for block in self.blocks:
            # What no file holds must never be dropped.
            block.resident, block.keep = block.name in resident, block.name in kept or not block.pieces
            block.kept = block.kept if block.keep else None
        self.move(device)
        for block in self.blocks:
            for weight in block.weights:
                weight.take_away(device)

    def move(self, device: torch.device) -> None:
        """Compute on another device from now on. Blocks kept in host memory stay there."""
        self.evict()
        self.device = device
        self._start()

    def close(self) -> None:
        """End the thread and close the files."""
        self.release()
        self._thread.shutdown()
        self.reader.close()


def stream_of(module: nn.Module) -> DiskStream | None:
    """Return the stream that reads a module's blocks, if there is one.

    Args:
        module (`nn.Module`): The module itself, not one of its parts.

    Returns:
        `DiskStream` or `None`
    """
    return module.__dict__.get(STREAM)
