"""Laws of `TileGrid` for all sizes, tiles and strides."""

import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext.models.tiling import TileGrid, equal_spans, full_spans


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    tile = draw(st.integers(1, 24))
    return TileGrid(
        height=draw(st.integers(1, 70)),
        width=draw(st.integers(1, 70)),
        tile=tile,
        stride=draw(st.integers(1, tile)),
        scale=draw(st.sampled_from([1, 2, 8])),
        ramp_outer=draw(st.booleans()),
    )


@given(grids())
@settings(max_examples=60, deadline=None)
def test_tiles_are_no_larger_than_asked_and_cover_the_plane(grid: TileGrid) -> None:
    covered = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    for rows, columns in grid.windows():
        for cells, size in ((rows, grid.height), (columns, grid.width)):
            assert 0 <= cells.start < cells.stop <= size
            length, most = cells.stop - cells.start, min(grid.tile, size)
            assert length == most if grid.ramp_outer else most / 2 <= length <= most
        covered[rows, columns] = True
    assert covered.all()


@given(grids())
@settings(max_examples=60, deadline=None)
def test_weights_are_positive_and_at_most_one(grid: TileGrid) -> None:
    for rows, columns in grid.windows()[:9]:
        weights = grid.weights(rows, columns)
        assert weights.shape == tuple((cells.stop - cells.start) * grid.scale for cells in (rows, columns))
        assert weights.min() > 0
        assert weights.max() <= 1


@given(grids(), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_equal_tiles_give_their_plane_back(grid: TileGrid, batch: int) -> None:
    # Where hundreds of tiles overlap, float32 loses digits.
    shape = (batch, 2, grid.height * grid.scale, grid.width * grid.scale)
    plane = torch.randn(shape, dtype=torch.float64)

    def cut(rows: slice, columns: slice) -> torch.Tensor:
        scale = grid.scale
        return plane[..., rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]

    torch.testing.assert_close(grid.blend(cut), plane)


AXES = {"size": st.integers(1, 400), "tile": st.integers(1, 60), "share": st.floats(0, 1)}


@given(**AXES)
@settings(max_examples=100, deadline=None)
def test_no_more_tiles_than_needed(size: int, tile: int, share: float) -> None:
    stride = 1 + round(share * (tile - 1))
    for spans in (equal_spans(size, tile, stride), full_spans(size, tile, stride)):
        assert spans == sorted(spans, key=lambda span: span.start)
        assert len(spans) == 1 + max(0, -(-(size - tile) // stride))


@given(**AXES)
@settings(max_examples=100, deadline=None)
def test_equal_spans_overlap_as_asked_and_compute_no_more_than_diffusers(size: int, tile: int, share: float) -> None:
    stride = 1 + round(share * (tile - 1))
    spans = equal_spans(size, tile, stride)
    lengths = [span.stop - span.start for span in spans]
    assert max(lengths) - min(lengths) <= 1
    assert {one.stop - other.start for one, other in pairwise(spans)} <= {tile - stride}
    # diffusers starts a tile at every stride and cuts what lies beyond the border.
    assert sum(lengths) <= sum(min(tile, size - start) for start in range(0, size, stride))


@pytest.mark.parametrize("ramp_outer", [False, True])
def test_weights_fall_towards_inner_borders(ramp_outer: bool) -> None:
    grid = TileGrid(height=4, width=12, tile=8, stride=4, ramp_outer=ramp_outer)
    first, last = (grid.weights(*window) for window in grid.windows())
    middle = [0.5, 1.0, 1.0, 0.5] if ramp_outer else [1.0] * 4
    assert first[:, 0].tolist() == ([0.5] * 4 if ramp_outer else [1.0] * 4)
    assert first[:, 7].tolist() == [0.5] * 4
    assert first[:, 4].tolist() == middle
    assert torch.equal(first, last.flip(1))


def test_overlap_fades_from_one_tile_to_the_next() -> None:
    grid = TileGrid(height=8, width=16, tile=8, stride=4)
    windows = grid.windows()
    blended = grid.blend(lambda rows, columns: torch.full((1, 1, 8, 8), float(windows.index((rows, columns)))))
    row = blended[0, 0, 3]
    assert row[:4].tolist() == [0.0] * 4
    assert row[12:].tolist() == [2.0] * 4
    assert bool((row.diff() >= 0).all())
    assert 0 < row[5] < 1 < row[10] < 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    grid = TileGrid(height=9, width=9, tile=4, stride=1)
    blended = grid.blend(lambda rows, columns: torch.full((1, 1, 4, 4), 0.3, dtype=dtype))
    assert blended.dtype == dtype
    torch.testing.assert_close(blended, torch.full_like(blended, 0.3))


def test_gradients_reach_the_tiles() -> None:
    grid = TileGrid(height=6, width=6, tile=4, stride=2)
    plane = torch.randn(1, 1, 6, 6, requires_grad=True)
    grid.blend(lambda rows, columns: plane[..., rows, columns]).sum().backward()
    torch.testing.assert_close(plane.grad, torch.ones_like(plane))


def test_one_tile_is_alive_at_a_time() -> None:
    tiles: list[weakref.ref[torch.Tensor]] = []

    def process(rows: slice, columns: slice) -> torch.Tensor:
        assert not any(tile() is not None for tile in tiles)
        tile = torch.ones(1, 1, rows.stop - rows.start, columns.stop - columns.start)
        tiles.append(weakref.ref(tile))
        return tile

    TileGrid(height=10, width=12, tile=4, stride=3).blend(process)
    assert len(tiles) == 12
