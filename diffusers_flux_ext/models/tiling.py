"""Tiles that cover a plane without holes or slivers, and their blending with weights that fall towards the seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch


def equal_spans(size: int, tile: int, stride: int) -> list[slice]:
    """Cut one axis into as few spans as full tiles would take, all equally long to within one cell.

    Full tiles overlap more than asked wherever the axis is no sum of strides, and what they overlap is computed twice;
    these overlap by `tile - stride` everywhere.

    Args:
        size (`int`):
            Length of the axis, at least 1.
        tile (`int`):
            Most that a span may have, at least 1. An axis that is not longer is one span.
        stride (`int`):
            `tile` less the overlap, from 1 to `tile`.

    Returns:
        `list[slice]`: Ascending spans of at least half a tile, which together cover the axis.
    """
    if size <= tile:
        return [slice(0, size)]
    overlap = tile - stride
    count = -(-(size - overlap) // stride)
    borders = [number * (size - overlap) // count for number in range(count + 1)]
    return [slice(start, stop + overlap) for start, stop in pairwise(borders)]


def full_spans(size: int, tile: int, stride: int) -> list[slice]:
    """Cut one axis into full tiles, as DiffSynth-Studio does: one every `stride`, the last one moved inward.

    Args:
        size (`int`):
            Length of the axis, at least 1.
        tile (`int`):
            Length of a tile, at least 1. An axis that is not longer is one span.
        stride (`int`):
            Distance between tiles, from 1 to `tile`; less before the last one.

    Returns:
        `list[slice]`: Ascending spans, which together cover the axis.
    """
    if size <= tile:
        return [slice(0, size)]
    return [slice(start, start + tile) for start in [*range(0, size - tile, stride), size - tile]]


def _axis_weights(start: int, tile: int, size: int, ramp: int, ramp_outer: bool) -> torch.Tensor:
    distances = torch.arange(1, tile + 1, dtype=torch.float32)
    weights = torch.full((tile,), float(ramp))
    if ramp_outer or start > 0:
        weights = torch.minimum(weights, distances)
    if ramp_outer or start + tile < size:
        weights = torch.minimum(weights, distances.flip(0))
    return weights / ramp


@dataclass(frozen=True)
class TileGrid:
    """Tiles of a plane of `height` x `width` cells and the way back from processed tiles to one plane.

    Attributes:
        height (`int`), width (`int`):
            Size of the plane in cells.
        tile (`int`):
            Largest side of a tile in cells.
        stride (`int`):
            `tile` less the overlap of neighbours in cells, from 1 to `tile`.
        scale (`int`):
            A processed tile has `scale` pixels per cell.
        ramp_outer (`bool`):
            Whether tiles and weights are DiffSynth-Studio's: tiles of full size, and weights that fall towards the
            borders of the plane, too. Near them overlaps are then averaged instead of faded over.
    """

    height: int
    width: int
    tile: int
    stride: int
    scale: int = 1
    ramp_outer: bool = False

    def windows(self) -> list[tuple[slice, slice]]:
        """Return the tiles, row by row, as slices of cells."""
        spans = full_spans if self.ramp_outer else equal_spans
        return [
            (rows, columns)
            for rows in spans(self.height, self.tile, self.stride)
            for columns in spans(self.width, self.tile, self.stride)
        ]

    def weights(self, rows: slice, columns: slice) -> torch.Tensor:
        """Blending weights of one tile: the distance to its nearest inner border over half a stride, at most 1.

        Returns:
            `torch.Tensor` of shape `(tile_height * scale, tile_width * scale)`: float32 values in (0, 1] on CPU.
        """
        ramp = max(self.stride // 2, 1) * self.scale
        vertical, horizontal = (
            _axis_weights(
                cells.start * self.scale,
                (cells.stop - cells.start) * self.scale,
                size * self.scale,
                ramp,
                self.ramp_outer,
            )
            for cells, size in ((rows, self.height), (columns, self.width))
        )
        return torch.minimum(vertical[:, None], horizontal[None, :])

    def blend(self, process: Callable[[slice, slice], torch.Tensor]) -> torch.Tensor:
        """Process the tiles one after the other and blend them into one plane.

        Besides the plane itself only one processed tile is held at a time.

        Args:
            process (`Callable[[slice, slice], torch.Tensor]`):
                Gets the rows and columns of a tile in cells, returns it as
                `(batch_size, channels, rows * scale, columns * scale)`.

        Returns:
            `torch.Tensor` of shape `(batch_size, channels, height * scale, width * scale)`, with the dtype and the
            device of the tiles.
        """
        plane = _Plane(self)
        for rows, columns in self.windows():
            # Do not name the tile: it would stay alive while the next one is computed.
            plane.add(process(rows, columns), rows, columns)
        return plane.result()


class _Plane:
    """Weighted sums of tiles in at least float32, because overlaps would lose digits in half precision."""

    def __init__(self, grid: TileGrid) -> None:
        self.grid = grid
        self.sums: torch.Tensor | None = None

    def _allocate(self, tile: torch.Tensor) -> torch.Tensor:
        height, width = self.grid.height * self.grid.scale, self.grid.width * self.grid.scale
        dtype = torch.promote_types(tile.dtype, torch.float32)
        self.dtype = tile.dtype
        self.weights = torch.zeros(height, width, dtype=dtype, device=tile.device)
        return torch.zeros(*tile.shape[:2], height, width, dtype=dtype, device=tile.device)

    def add(self, tile: torch.Tensor, rows: slice, columns: slice) -> None:
        if self.sums is None:
            self.sums = self._allocate(tile)
        scale = self.grid.scale
        window = (
            slice(rows.start * scale, rows.stop * scale),
            slice(columns.start * scale, columns.stop * scale),
        )
        weights = self.grid.weights(rows, columns).to(self.weights)
        self.weights[window] += weights
        self.sums[(..., *window)] += tile.to(weights.dtype) * weights

    def result(self) -> torch.Tensor:
        if self.sums is None:
            raise RuntimeError("A tile grid needs at least one tile, but no tile was added.")
        return self.sums.div_(self.weights).to(self.dtype)
