"""The updates of split layers as one of a fused layer, without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import LoRAError, UnsupportedLoRAError
from .base import LoRA, Update
from .exact import BlockMatrix, alpha_tensor, concatenate, multiplied
from .kinds import update_of
from .modules import magnitude_axis


def join_rows(members: Sequence[Update | None], shares: Sequence[int], name: str) -> Update:
    """Stack the updates of a fused layer's parts.

    Parts with the same `down` (to the bit) share its rows, so the rank does not grow; others become blocks. A missing
    part becomes rows of zeros and costs no rank.

    Args:
        members (`Sequence[Update | None]`):
            LoRAs, or dense updates; `None` for parts that have none. At least one is there.
        shares (`Sequence[int]`): The rows of each part, as shares of the whole.
        name (`str`): The layer's name for errors.

    Returns:
        `Update`: The update of the whole.

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
    if any(isinstance(member.inner, LoRA) for member in present):
        parts.update(_join_factors(members, sizes, scale, name))
    for part in ("diff", "diff_b", "bias"):
        if any(part in member.parts for member in present):
            parts[part] = _stack(members, sizes, part, scale)
    if any("magnitude" in member.parts for member in present):
        parts["magnitude"] = _stack_magnitudes(members, name)
    like = next((member.alpha for member in present if member.alpha is not None), None)
    joined = update_of(parts, scale)
    if like is None or joined.rank is None:
        return joined
    return replace(joined, alpha=alpha_tensor(scale * joined.rank, like))


def _join_factors(members: Sequence[Update | None], sizes: Sequence[int], scale: float, name: str) -> dict[str, Any]:
    groups: list[Tensor] = []
    where: list[int | None] = []
    for member in members:
        if member is None or not isinstance(member.inner, LoRA):
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


def _stack(members: Sequence[Update | None], sizes: Sequence[int], part: str, scale: float) -> Tensor:
    known = next(member.parts[part] for member in members if member is not None and part in member.parts)
    rows = []
    for member, size in zip(members, sizes):
        if member is None or part not in member.parts:
            rows.append(torch.zeros(size, *known.shape[1:], dtype=known.dtype, device=known.device))
        else:
            factor = _ratio(member.scale, scale) if part == "bias" else 1.0
            rows.append(multiplied(member.parts[part], factor))
    return concatenate(rows)


def _stack_magnitudes(members: Sequence[Update | None], name: str) -> Tensor:
    magnitudes = [member.parts.get("magnitude") if member else None for member in members]
    found = [magnitude for magnitude in magnitudes if magnitude is not None and magnitude_axis(magnitude) == "out"]
    if len(found) != len(magnitudes):
        raise UnsupportedLoRAError(
            f"Only {len(found)} of the {len(magnitudes)} parts of `{name}` have DoRA magnitudes of outputs; the "
            "others are the norms of the base weights, which a LoRA file does not hold."
        )
    return concatenate(found)
