"""Blocks of a module whose weights are on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import Piece


@dataclass(eq=False)
class StreamedWeight:
    """A weight on disk.

    While it is not loaded, a placeholder of its shape, data type and device takes its place, which takes no memory, is
    NaN throughout and cannot be written to. Neither is a parameter, so code that moves, counts or saves parameters
    skips it.

    Attributes:
        name (`str`): Its key in the file.
        path (`Path`, *optional*): The file; none holds what is kept in host memory.
        owner (`nn.Module`): The module that has it; adapters may wrap that module at any time.
        attribute (`str`): Its name there.
        stored_dtype (`torch.dtype`): Its data type in the file.
        dtype (`torch.dtype`): The data type that it computes in.
        shape (`tuple[int, ...]`): Its shape.
        position (`int`): Its first byte in the block's buffer.
        requires_grad (`bool`): Value of the parameter.
        order (`tuple[str, ...]`): The owner's parameters in their order.
    """

    name: str
    path: Path | None
    owner: nn.Module
    attribute: str
    stored_dtype: torch.dtype
    dtype: torch.dtype
    shape: tuple[int, ...]
    position: int
    requires_grad: bool
    order: tuple[str, ...]

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return torch.Size(self.shape).numel()

    def stored(self, data: Tensor) -> Tensor:
        """Return the weight as it is stored in the block's buffer."""
        size = self.numel * self.stored_dtype.itemsize
        return data[self.position : self.position + size].view(self.stored_dtype).view(self.shape)

    def put(self, weight: Tensor) -> None:
        """Make the owner compute with `weight`."""
        self.owner._parameters.pop(self.attribute, None)
        self.owner.__dict__[self.attribute] = weight

    def take_away(self, device: torch.device) -> None:
        """Put the placeholder in place of the weight."""
        # All bits of a byte are the NaN of both kinds of 8 bits.
        nothing = float("nan") if self.dtype.is_floating_point else 255
        self.put(torch.full((), nothing, dtype=self.dtype, device=device).expand(self.shape))

    def restore(self, weight: Tensor) -> None:
        """Make the weight a parameter again."""
        del self.owner.__dict__[self.attribute]
        parameters = self.owner._parameters
        self.owner.register_parameter(self.attribute, nn.Parameter(weight, requires_grad=self.requires_grad))
        for name in self.order:
            if name in parameters:
                parameters[name] = parameters.pop(name)


@dataclass(eq=False)
class StreamedBlock:
    """A block whose weights are read together.

    Attributes:
        name (`str`): Its name in the module.
        weights (`Sequence[StreamedWeight]`): Its weights.
        pieces (`Sequence[Piece]`): The reads that load them.
        size (`int`): The buffer that they need, in bytes.
        keep (`bool`): Whether it stays in host memory once it has been read.
        kept (`torch.Tensor`, *optional*): Its bytes in host memory, if it stays there.
        resident (`bool`): Whether it stays on the onload device once it is there.
        on_device (`torch.Tensor`, *optional*): Its bytes there, if it stays.
    """

    name: str
    weights: Sequence[StreamedWeight]
    pieces: Sequence[Piece]
    size: int
    keep: bool = False
    kept: Tensor | None = field(default=None, repr=False)
    resident: bool = False
    on_device: Tensor | None = field(default=None, repr=False)

    @property
    def cast_size(self) -> int:
        """Bytes of the weights that are stored in another data type, in the one that they compute in."""
        return sum(
            -(-weight.numel * weight.dtype.itemsize // 64) * 64
            for weight in self.weights
            if weight.dtype != weight.stored_dtype
        )


def choose_kept(blocks: Sequence[StreamedBlock], room: int) -> None:
    """Mark the blocks that stay in memory: as many as fit, spread evenly.

    Blocks are used in a cycle, where keeping the most recently used ones would never help. Between kept blocks the
    disk goes on reading, so they are spread.

    Args:
        blocks (`Sequence[StreamedBlock]`): All blocks, in the order of their use.
        room (`int`): Bytes that they may take.
    """
    for block, kept in zip(blocks, spread([block.size for block in blocks], room), strict=True):
        block.keep = kept


def spread(sizes: Sequence[int], room: int) -> list[bool]:
    """Choose as many as fit, spread evenly.

    Args:
        sizes (`Sequence[int]`): Bytes of each.
        room (`int`): Bytes that those chosen may take.

    Returns:
        `list[bool]`: Whether each is chosen.
    """
    total, passed, taken = sum(sizes), 0, 0
    chosen: list[bool] = []
    for size in sizes:
        passed += size
        # Exact integers: the share so far must not exceed the share of the whole.
        chosen.append((taken + size) * total <= room * passed)
        taken += size * chosen[-1]
    for place, size in enumerate(sizes):
        if not chosen[place] and taken + size <= room:
            chosen[place] = True
            taken += size
    return chosen
