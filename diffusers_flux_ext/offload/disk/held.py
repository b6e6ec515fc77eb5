"""Streaming blocks from host memory, where no file holds them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from ...checkpoints.packed_weights import check_not_packed
from .attach import attach
from .files import ALIGNMENT
from .plan import Slot, StreamingPlan, choose_blocks, split_weights
from .stream import DiskStream
from .streaming import check_free
from .weights import StreamedBlock, StreamedWeight


logger = logging.get_logger(__name__)


def stream_from_memory(
    module: nn.Module, device: torch.device, blocks: Sequence[str], read_ahead: int = 1
) -> DiskStream:
    """Keep blocks of a module in host memory, and copy them to a device one after another.

    Each block's matrices become one run of bytes, pinned where the device is a GPU of CUDA. As with
    [`stream_from_disk`], biases, norms, tied weights and adapters stay on the device.

    Args:
        module (`nn.Module`): The module, in host memory. The rest of it is moved to the device.
        device (`torch.device`): Where it computes.
        blocks (`Sequence[str]`): Names of the blocks that are streamed, or of lists of them.
        read_ahead (`int`, *optional*, defaults to 1): Number of blocks that are copied ahead.

    Returns:
        `DiskStream`

    Raises:
        ValueError: If the module is quantised, is offloaded in another way, or has no such blocks.
    """
    check_not_packed(module, "be streamed from host memory", "Load its unquantised weights.")
    check_free(module)
    streamed, _ = split_weights(module, choose_blocks(module, blocks))
    held = [_hold(name, slots, device) for name, slots in streamed.items()]
    # Nothing is read from files, so the buffer on the way is empty.
    return attach(module, StreamingPlan(held, {}, {}), device, read_ahead, staging=1, copies=True)


def _hold(name: str, slots: Sequence[Slot], device: torch.device) -> StreamedBlock:
    weights, size = [], 0
    for slot in slots:
        weights.append(_weight(slot, size))
        size += -(-slot.tensor.nbytes // ALIGNMENT) * ALIGNMENT
    kept = torch.empty(size, dtype=torch.uint8)
    with torch.no_grad():
        for slot, weight in zip(slots, weights, strict=True):
            weight.stored(kept).copy_(slot.tensor)
            # At once, so that host memory holds no more than one block twice.
            weight.take_away(device)
    if device.type == "cuda":
        _pin(kept)
    return StreamedBlock(name, weights, (), size, keep=True, kept=kept)


def _weight(slot: Slot, position: int) -> StreamedWeight:
    tensor = slot.tensor
    return StreamedWeight(
        slot.key,
        None,
        slot.owner,
        slot.attribute,
        tensor.dtype,
        tensor.dtype,
        tuple(tensor.shape),
        position,
        tensor.requires_grad,
        tuple(slot.owner._parameters),
    )


def _pin(buffer: Tensor) -> None:
    """Pin memory where it is: PyTorch's own pinned memory comes in powers of two, up to twice as much as is needed."""
    cuda, address = torch.cuda.cudart(), buffer.data_ptr()
    code = int(cuda.cudaHostRegister(address, buffer.nbytes, 0))
    if code:
        logger.warning(
            f"{buffer.nbytes / 2**20:.0f} MiB of host memory could not be pinned (CUDA's error {code}), so copies to "
            f"the GPU are slower. Close other programs, or let more memory be locked."
        )
        # CUDA keeps the error, and would raise it at the next kernel, whatever that is.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda").add_(1)
        return
    # When the process ends, the driver does so itself.
    weakref.finalize(buffer, cuda.cudaHostUnregister, address).atexit = False
