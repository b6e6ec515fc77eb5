"""Tiles that cover a plane without holes or slivers, and their blending with weights that fall towards the seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


def tile_starts(size: int, tile: int, stride: int) -> list[int]:
    """Start of the tiles along one axis: every `stride`, and a last tile that is moved inward to end at the border.

    Args:
        size (`int`):
            Length of the axis, at least 1.
        tile (`int`):
            Length of a tile, at least 1. An axis that is not longer is covered by a single tile.
        stride (`int`):
            Distance between tiles, from 1 to `tile`.

    Returns:
        `list[int]`: Ascending starts. Every tile lies inside the axis at full length; together they cover it.
    """
    if size <= tile:
        return [0]
    return [*range(0, size - tile, stride), size - tile]


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
            Side of a tile in cells. A plane that is smaller along one axis has tiles of its own length there.
        stride (`int`):
            Distance between tiles in cells, from 1 to `tile`.
        scale (`int`):
            A processed tile has `scale` pixels per cell.
        ramp_outer (`bool`):
            Whether weights also fall towards the borders of the plane, as in DiffSynth-Studio. Near them overlaps are
            then averaged instead of faded over.
    """

    height: int
    width: int
    tile: int
    stride: int
    scale: int = 1
    ramp_outer: bool = False

    def windows(self) -> list[tuple[slice, slice]]:
        """Return the tiles, row by row, as slices of cells."""
        tall, wide = min(self.tile, self.height), min(self.tile, self.width)
        return [
            (slice(top, top + tall), slice(left, left + wide))
            for top in tile_starts(self.height, self.tile, self.stride)
            for left in tile_starts(self.width, self.tile, self.stride)
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
