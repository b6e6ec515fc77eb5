"""What a LoRA file does to one layer, and how fused layers are split and split ones joined without loss.

Every tensor is kept as stored: conversions slice, stack and permute. Where a number has to be multiplied, the result
keeps its dtype if it is exact there and is widened to float32 if not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .errors import LoRAError, UnsupportedLoRAError
from .keys import LoRAKey


LORA = frozenset({"down", "up"})
LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
LOKR = frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"})
# Parts with a row for every output; all others belong to the whole layer.
ROW_PARTS = frozenset({"up", "bias", "hada_w1_a", "hada_w2_a", "diff", "diff_b"})


class BlockMatrix:
    """
    A matrix of zeros with blocks in it, put together when it is needed: the `up` of joined layers is mostly zeros.

    Args:
        blocks (`Sequence[tuple[int, int, torch.Tensor]]`):
            First row, first column and values of each block.
        shape (`tuple[int, int]`):
            Rows and columns.
    """

    ndim = 2

    def __init__(self, blocks: Sequence[tuple[int, int, Tensor]], shape: tuple[int, int]) -> None:
        self.blocks = blocks
        self.shape = torch.Size(shape)
        self.dtype = reduce(promote, [block.dtype for _, _, block in blocks])

    def build(self) -> Tensor:
        """The matrix as a tensor."""
        matrix = torch.zeros(self.shape, dtype=self.dtype, device=self.blocks[0][2].device)
        for row, column, block in self.blocks:
            matrix[row : row + block.shape[0], column : column + block.shape[1]] = block.to(self.dtype)
        return matrix


@dataclass(frozen=True)
class LayerUpdate:
    """
    The update of one layer, `delta W = scale * up @ down` or another product of its parts.

    Attributes:
        parts (`Mapping[str, torch.Tensor]`):
            The factors as stored, by canonical name: `down` `(rank, in_features)`, `up` `(out_features, rank)`,
            `bias` `(out_features,)`, `magnitude`, LyCORIS' `hada_*` and `lokr_*`, or `diff` and `diff_b`. A joined
            `up` is a [`BlockMatrix`].
        scale (`float`):
            What the product and `bias` are multiplied with; never `diff` and `diff_b`.
        alpha (`torch.Tensor`, *optional*):
            Alpha as stored, in its shape and dtype.
    """

    parts: Mapping[str, Any]
    scale: float = 1.0
    alpha: Tensor | None = None

    @property
    def kind(self) -> str:
        """`"lora"`, `"loha"`, `"lokr"`, `"diff"`, or `"none"` if there is no update of the matrix."""
        if "down" in self.parts:
            return "lora"
        if "hada_w1_a" in self.parts:
            return "loha"
        if LOKR & self.parts.keys():
            return "lokr"
        return "diff" if "diff" in self.parts else "none"

    @property
    def rank(self) -> int | None:
        """The number by which alpha is divided, `None` where there is no such number."""
        parts = self.parts
        for name, axis in (("down", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
            if name in parts:
                return parts[name].shape[axis]
        return None

    @property
    def out_features(self) -> int:
        """Rows of the layer."""
        for name in ("up", "hada_w1_a", "diff", "diff_b", "bias"):
            if name in self.parts:
                return self.parts[name].shape[0]
        return self._kron_size(0)

    @property
    def in_features(self) -> int | None:
        """Columns of the layer, `None` if no part shows them."""
        for name in ("down", "hada_w1_b", "diff"):
            if name in self.parts:
                return self.parts[name].shape[1]
        return self._kron_size(1) if self.kind == "lokr" else None

    def _kron_size(self, axis: int) -> int:
        sizes = []
        for factor in ("lokr_w1", "lokr_w2"):
            part = self.parts.get(factor, self.parts.get(f"{factor}_{'ab'[axis]}"))
            if part is None or part.ndim != 2:
                raise LoRAError(f"A LoKr layer lacks a two-dimensional `{factor}`; it has {sorted(self.parts)}.")
            sizes.append(part.shape[axis])
        return sizes[0] * sizes[1]


@dataclass(frozen=True)
class StoredLayer:
    """
    A layer as it stands in a file: under one spelling, with all of its parts.

    Attributes:
        key (`LoRAKey`):
            One of its keys.
        update (`LayerUpdate`):
            Its parts; `scale` is known once alpha and metadata have been read.
    """

    key: LoRAKey
    update: LayerUpdate = field(repr=False)

    @property
    def name(self) -> str:
        """The layer as the file spells it."""
        return self.key.prefix + self.key.body


def lossless(tensor: Tensor, like: torch.dtype) -> Tensor:
    """`tensor` in the dtype `like` if that changes no value, else as it is."""
    narrow = tensor.to(like)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def multiplied(tensor: Tensor, factor: float) -> Tensor:
    """`tensor * factor`, in the dtype of `tensor` where that is exact and in float32 or wider elsewhere."""
    if factor == 1:
        return tensor
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32) if tensor.dtype.itemsize > 1 else torch.float32)
    product = wide * factor
    if not product.isfinite().all() and wide.isfinite().all():
        raise LoRAError(f"Values of a layer become infinite when they are multiplied with its scale, {factor:g}.")
    return lossless(product, tensor.dtype)


def swap_halves(tensor: Tensor) -> Tensor:
    """The rows with their two halves exchanged."""
    return torch.cat(tensor.chunk(2)[::-1])


def map_rows(update: LayerUpdate, function: Callable[[Tensor], Tensor]) -> LayerUpdate:
    """Applies `function` to every part that has a row for every output."""
    parts = {name: function(part) if name in ROW_PARTS else part for name, part in update.parts.items()}
    if "magnitude" in parts and magnitude_axis(parts["magnitude"]) == "out":
        parts["magnitude"] = function(parts["magnitude"])
    return replace(update, parts=parts)


def magnitude_axis(magnitude: Tensor) -> str:
    """`"in"` for DoRA magnitudes of shape `(1, in_features)`, `"out"` for `(out_features,)` or `(out_features, 1)`."""
    return "in" if magnitude.ndim == 2 and magnitude.shape[0] == 1 and magnitude.shape[1] != 1 else "out"


def split_rows(update: LayerUpdate, shares: Sequence[int], name: str) -> list[LayerUpdate | None]:
    """
    Cuts a fused layer into its parts.

    Parts share `down`, as one object. If the columns of `up` form blocks, as they do after [`join_rows`], each part
    keeps its own columns and rows of `down` only, and a part that nothing writes to is `None`.

    Args:
        update (`LayerUpdate`):
            A LoRA, a LoHa or a dense update; a LoKr has to be turned into a LoRA before.
        shares (`Sequence[int]`):
            The rows of each part, as shares of the whole.
        name (`str`):
            The layer's name for errors.

    Returns:
        `list`: An update for each part.

    Raises:
        LoRAError: If the rows cannot be divided so.
        UnsupportedLoRAError: If DoRA magnitudes belong to inputs, so that they mix the parts.
    """
    unit, rest = divmod(update.out_features, sum(shares))
    if rest or unit == 0:
        raise LoRAError(
            f"`{name}` updates {update.out_features} outputs; a fused layer of {len(shares)} parts has a multiple of "
            f"{sum(shares)}."
        )
    magnitude = update.parts.get("magnitude")
    if magnitude is not None and magnitude_axis(magnitude) == "in":
        raise UnsupportedLoRAError(
            f"The DoRA magnitudes of `{name}` belong to inputs, shape {tuple(magnitude.shape)}. Their norm runs over "
            "all parts of the fused layer, so they cannot be divided without the base weights."
        )
    starts = [sum(shares[:i]) * unit for i in range(len(shares) + 1)]
    cuts = [map_rows(update, itemgetter(slice(*ends))) for ends in zip(starts, starts[1:])]
    return _compress(cuts) if update.kind == "lora" and len(shares) > 1 else list(cuts)


def _compress(cuts: list[LayerUpdate]) -> list[LayerUpdate | None]:
    """Undoes the block structure of a join, if there is one; a trained fused layer has none."""
    if not any(bool((cut.parts["up"][0].float() == 0).any()) for cut in cuts):
        return list(cuts)
    used = [torch.any(cut.parts["up"].float().ne(0), 0) for cut in cuts]
    supports: list[Tensor] = []
    for columns in used:
        if columns.any() and not any(torch.equal(columns, other) for other in supports):
            supports.append(columns)
    if not supports or bool((torch.stack(supports).sum(0) > 1).any()):
        return list(cuts)
    kept = {id(columns): columns for columns in supports}
    narrow = {key: cuts[0].parts["down"][columns] for key, columns in kept.items()}
    return [_narrowed(cut, columns, kept, narrow) for cut, columns in zip(cuts, used)]


def _narrowed(
    cut: LayerUpdate, columns: Tensor, kept: Mapping[int, Tensor], downs: Mapping[int, Tensor]
) -> LayerUpdate | None:
    if not columns.any():
        return None if not ({"bias", "magnitude", "diff_b"} & cut.parts.keys()) else cut
    if columns.all():
        return cut
    key = next(key for key, other in kept.items() if torch.equal(columns, other))
    parts = {**cut.parts, "down": downs[key], "up": cut.parts["up"][:, columns]}
    rank = int(columns.sum())
    return LayerUpdate(parts, cut.scale, None if cut.alpha is None else alpha_tensor(cut.scale * rank, cut.alpha))


def alpha_tensor(value: float, like: Tensor | None = None) -> Tensor:
    """Alpha as a tensor, in the shape and dtype of `like` if it is exact there, else in float32."""
    if like is None:
        return torch.tensor(value, dtype=torch.float32)
    exact = torch.full(tuple(like.shape), value, dtype=torch.float64)
    stored = exact.to(like.dtype)
    return stored if torch.equal(stored.double(), exact) else exact.to(torch.float32)


def join_rows(members: Sequence[LayerUpdate | None], shares: Sequence[int], name: str) -> LayerUpdate:
    """
    Stacks the updates of a fused layer's parts.

    Parts with the same `down` (to the bit) share its rows, so the rank does not grow; others become blocks. A missing
    part becomes rows of zeros and costs no rank.

    Args:
        members (`Sequence[LayerUpdate | None]`):
            LoRAs, or dense updates; `None` for parts that have none. At least one is there.
        shares (`Sequence[int]`):
            The rows of each part, as shares of the whole.
        name (`str`):
            The layer's name for errors.

    Returns:
        `LayerUpdate`: The update of the whole.

    Raises:
        LoRAError: If the parts do not fit together.
        UnsupportedLoRAError: If only some of the parts have DoRA magnitudes.
    """
    present = [member for member in members if member is not None]
    units = {member.out_features / share for member, share in zip(members, shares) if member is not None}
    if len(units) != 1 or not (unit := units.pop()).is_integer():
        raise LoRAError(
            f"The parts of `{name}` update {[m and m.out_features for m in members]} outputs; expected them in the "
            f"proportion {list(shares)}."
        )
    sizes = [int(unit) * share for share in shares]
    scale = next((member.scale for member in present if member.scale != 0), present[0].scale)
    parts: dict[str, Any] = {}
    if any(member.kind == "lora" for member in present):
        parts.update(_join_factors(members, sizes, scale, name))
    for part in ("diff", "diff_b", "bias"):
        if any(part in member.parts for member in present):
            parts[part] = _stack(members, sizes, part, scale)
    if any("magnitude" in member.parts for member in present):
        parts["magnitude"] = _stack_magnitudes(members, name)
    like = next((member.alpha for member in present if member.alpha is not None), None)
    joined = LayerUpdate(parts, scale)
    if like is None or joined.rank is None:
        return joined
    return replace(joined, alpha=alpha_tensor(scale * joined.rank, like))


def _join_factors(
    members: Sequence[LayerUpdate | None], sizes: Sequence[int], scale: float, name: str
) -> dict[str, Any]:
    groups: list[Tensor] = []
    where: list[int | None] = []
    for member in members:
        if member is None or member.kind != "lora":
            where.append(None)
            continue
        down = member.parts["down"]
        found = next((i for i, other in enumerate(groups) if down is other or _same(down, other)), None)
        if found is None:
            found = len(groups)
            groups.append(down)
        where.append(found)
    if len({down.shape[1] for down in groups}) > 1:
        raise LoRAError(f"The parts of `{name}` take {[d.shape[1] for d in groups]} inputs; a fused layer has one.")
    starts = [sum(down.shape[0] for down in groups[:i]) for i in range(len(groups) + 1)]
    scaled = [
        multiplied(member.parts["up"], _ratio(member.scale, scale)) if group is not None and member else None
        for member, group in zip(members, where)
    ]
    rows = [sum(sizes[:i]) for i in range(len(sizes))]
    blocks = [
        (row, starts[group], block)
        for row, group, block in zip(rows, where, scaled)
        if group is not None and block is not None
    ]
    return {"down": concatenate(groups), "up": BlockMatrix(blocks, (sum(sizes), starts[-1]))}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _ratio(scale: float, reference: float) -> float:
    return 1.0 if scale == reference else scale / reference


def promote(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype that holds both exactly; float32 for two different 8-bit ones."""
    if a == b:
        return a
    small = [dtype for dtype in (a, b) if dtype.itemsize > 1]
    return reduce(torch.promote_types, small) if small else torch.float32


def equal_values(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of any dtypes have the same shape and values."""
    dtype = promote(first.dtype, second.dtype)
    return first.shape == second.shape and torch.equal(first.to(dtype), second.to(dtype))


def add_exactly(first: Tensor, second: Tensor) -> Tensor:
    """The sum in the dtype that holds both, or in float32 where that is one of 8 bits, in which nothing is added."""
    dtype = promote(first.dtype, second.dtype)
    dtype = dtype if dtype.itemsize > 1 else torch.float32
    return first.to(dtype) + second.to(dtype)


def concatenate(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all tensors, in a dtype that holds them exactly."""
    if len(tensors) == 1:
        return tensors[0]
    dtype = reduce(promote, [tensor.dtype for tensor in tensors])
    rows = sum(tensor.shape[0] for tensor in tensors)
    joined = torch.empty(rows, *tensors[0].shape[1:], dtype=dtype, device=tensors[0].device)
    start = 0
    for tensor in tensors:
        joined[start : start + tensor.shape[0]] = tensor.to(dtype)
        start += tensor.shape[0]
    return joined


def _stack(members: Sequence[LayerUpdate | None], sizes: Sequence[int], part: str, scale: float) -> Tensor:
    known = next(member.parts[part] for member in members if member is not None and part in member.parts)
    rows = []
    for member, size in zip(members, sizes):
        if member is None or part not in member.parts:
            rows.append(torch.zeros(size, *known.shape[1:], dtype=known.dtype, device=known.device))
        else:
            factor = _ratio(member.scale, scale) if part == "bias" else 1.0
            rows.append(multiplied(member.parts[part], factor))
    return concatenate(rows)


def _stack_magnitudes(members: Sequence[LayerUpdate | None], name: str) -> Tensor:
    magnitudes = [member.parts.get("magnitude") if member else None for member in members]
    found = [magnitude for magnitude in magnitudes if magnitude is not None and magnitude_axis(magnitude) == "out"]
    if len(found) != len(magnitudes):
        raise UnsupportedLoRAError(
            f"Only {len(found)} of the {len(magnitudes)} parts of `{name}` have DoRA magnitudes of outputs; the "
            "others are the norms of the base weights, which a LoRA file does not hold."
        )
    return concatenate(found)
