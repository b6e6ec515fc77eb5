"""Attach a stream to a module, and turn streamed weights into ordinary ones again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from ..._compat import remove_hook
from .files import FileReader
from .guards import add_guards, remove_guards
from .plan import StreamingPlan, read_tensor, source_folders, weight_dtype
from .stream import STREAM, DiskStream
from .weights import StreamedBlock


_HOOK = "disk_streaming"


class _NeedBlock(ModelHook):
    """Loads a block's weights before the first of its layers runs.

    It sits on the layers, not on the block: a cache that skips a block then never causes it to be read, whichever of
    the two was there first.
    """

    def __init__(self, stream: DiskStream, index: int) -> None:
        super().__init__()
        self.stream: DiskStream | None = stream
        self.index = index

    @torch.compiler.disable
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.stream is not None:
            self.stream.need(self.index)
        return args, kwargs


def attach(
    module: nn.Module,
    plan: StreamingPlan,
    device: torch.device,
    read_ahead: int = 1,
    staging: int = 2,
    dtype: torch.dtype | None = None,
    copies: bool = False,
) -> DiskStream:
    """Attach a stream that reads a module's blocks as planned.

    Args:
        module (`nn.Module`): The module.
        plan (`StreamingPlan`): From [`make_plan`].
        device (`torch.device`): Where it computes.
        read_ahead (`int`, *optional*, defaults to 1), staging (`int`, *optional*, defaults to 2): See [`DiskStream`].
        dtype (`torch.dtype`, *optional*): Data type that weights outside the blocks compute in.
        copies (`bool`, *optional*, defaults to `False`): See [`DiskStream`].

    Returns:
        `DiskStream`
    """
    _fill_resident(plan, device, dtype)
    paths = {piece.path for block in plan.blocks for piece in block.pieces}
    stream = DiskStream(plan.blocks, FileReader(paths), device, read_ahead, staging, copies)
    for index, block in enumerate(plan.blocks):
        for weight in block.weights:
            weight.take_away(device)
        for owner in _owners(block):
            HookRegistry.check_if_exists_or_initialize(owner).register_hook(_NeedBlock(stream, index), _HOOK)
    module._apply(lambda tensor: tensor.to(device))
    # Not a plain assignment: nothing of the stream belongs to the module's state.
    object.__setattr__(module, STREAM, stream)
    add_guards(module, stream, source_folders(plan.files, plan.blocks))
    return stream


def detach(module: nn.Module, stream: DiskStream, as_stored: bool = False) -> None:
    """Turn streamed weights into ordinary parameters again.

    Args:
        module (`nn.Module`): The module.
        stream (`DiskStream`): Its stream.
        as_stored (`bool`, *optional*, defaults to `False`):
            Whether weights keep the data type of the file, instead of that which they compute in.

    Raises:
        RuntimeError: If a file was changed; streaming then stays on.
    """
    stream.evict()
    restored = [_read_weights(block, stream, as_stored) for block in stream.blocks]
    for block, weights in zip(stream.blocks, restored, strict=True):
        for weight, value in zip(block.weights, weights, strict=True):
            weight.restore(value)
        for owner in _owners(block):
            remove_hook(owner, _HOOK)
    remove_guards(module)
    stream.close()
    object.__delattr__(module, STREAM)


def _owners(block: StreamedBlock) -> list[nn.Module]:
    return list({id(weight.owner): weight.owner for weight in block.weights}.values())


def _fill_resident(plan: StreamingPlan, device: torch.device, dtype: torch.dtype | None) -> None:
    """Load the weights of the file that are not streamed."""
    reader = FileReader({plan.files[key].path for key in plan.resident})
    try:
        for key, tied in plan.resident.items():
            present = tied[0].tensor
            stored = read_tensor(plan.files[key], reader)
            value: Tensor = stored.to(device, weight_dtype(present, stored.dtype, dtype))
            if isinstance(present, nn.Parameter):
                value = nn.Parameter(value, requires_grad=present.requires_grad)
            for slot in tied:
                setattr(slot.owner, slot.attribute, value)
    finally:
        reader.close()


def _read_weights(block: StreamedBlock, stream: DiskStream, as_stored: bool) -> Sequence[Tensor]:
    data = block.kept
    if data is None:
        data = torch.empty(block.size, dtype=torch.uint8)
        stream.reader.read(block.pieces, data)
    return [
        weight.stored(data).to(stream.device, weight.stored_dtype if as_stored else weight.dtype, copy=True)
        for weight in block.weights
    ]
