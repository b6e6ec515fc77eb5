"""Other products than `up @ down`, as exact LoRAs or as dense matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .updates import LayerUpdate, add_exactly, lossless, multiplied


def kron_factors(update: LayerUpdate) -> tuple[Tensor, Tensor]:
    """The two factors of a LoKr update, each multiplied out, in float32."""
    parts = {name: part.float() for name, part in update.parts.items()}
    return _multiplied_out(parts, "lokr_w1"), _multiplied_out(parts, "lokr_w2")


def _multiplied_out(parts: Mapping[str, Tensor], factor: str) -> Tensor:
    if factor in parts:
        return parts[factor]
    return parts[f"{factor}_a"] @ parts[f"{factor}_b"]


def _pair(parts: Mapping[str, Tensor], factor: str) -> tuple[Tensor, Tensor]:
    """A factor as a product with the smallest inner size at hand."""
    if factor not in parts:
        return parts[f"{factor}_a"].float(), parts[f"{factor}_b"].float()
    return _with_identity(parts[factor].float())


def _with_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = matrix.shape
    if columns <= rows:
        return matrix, torch.eye(columns, dtype=matrix.dtype, device=matrix.device)
    return torch.eye(rows, dtype=matrix.dtype, device=matrix.device), matrix


def to_lora(update: LayerUpdate) -> LayerUpdate:
    """
    The same update as a LoRA, exactly.

    A LoKr `kron(a b, c d)` is `kron(a, c) @ kron(b, d)`, a LoHa the Khatri-Rao product of its factors (of rank
    `rank ** 2`), a dense matrix the product with an identity. The rank grows, the update does not change.

    Args:
        update (`LayerUpdate`):
            Any kind; a LoRA is returned as it is.

    Returns:
        `LayerUpdate`: With `up` and `down` in place of the other factors, and `bias` in place of `diff_b`. Alpha is
        gone, `scale` says all.
    """
    update = _bias_as_lora(update)
    if update.kind in ("lora", "none"):
        return update
    out_features, in_features = update.out_features, update.in_features or 1
    scale = update.scale
    if update.kind == "diff":
        up, down = _with_identity(update.parts["diff"].float())
        scale = 1.0
    else:
        up, down = _factors(update, min(out_features, in_features))
    stored = next(iter(update.parts.values())).dtype
    rest = {name: part for name, part in update.parts.items() if name in ("bias", "magnitude")}
    if update.kind == "diff" and "bias" in rest:
        rest["bias"] = multiplied(rest["bias"], update.scale)
    return LayerUpdate({"down": lossless(down, stored), "up": lossless(up, stored), **rest}, scale)


def _factors(update: LayerUpdate, largest: int) -> tuple[Tensor, Tensor]:
    """`up` and `down` of a LoHa or a LoKr, of a rank of up to `largest`."""
    if update.kind == "loha":
        a, b, c, d = (update.parts[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        if b.shape[0] * d.shape[0] > largest:
            return _with_identity((a @ b) * (c @ d))
        return _khatri_rao(a, b, c, d)
    (a, b), (c, d) = _pair(update.parts, "lokr_w1"), _pair(update.parts, "lokr_w2")
    if b.shape[0] * d.shape[0] > largest:
        return _with_identity(torch.kron(a @ b, c @ d))
    return torch.kron(a, c), torch.kron(b, d)


def _khatri_rao(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    up = (a[:, :, None] * c[:, None, :]).flatten(1)
    down = (b[:, None, :] * d[None, :, :]).flatten(0, 1)
    return up, down


def _bias_as_lora(update: LayerUpdate) -> LayerUpdate:
    """`diff_b`, which is never scaled, as `bias`, which is."""
    if "diff_b" not in update.parts:
        return update
    parts = dict(update.parts)
    added = parts.pop("diff_b")
    if update.kind == "none":
        return replace(update, parts={**parts, "bias": added}, scale=1.0, alpha=None)
    if update.kind == "diff":
        return LayerUpdate({**parts, "bias": added}, 1.0)
    if update.scale == 0:
        first = ("up", "hada_w1_a", "lokr_w1", "lokr_w1_a")
        muted = {name: torch.zeros_like(part) if name in first else part for name, part in parts.items()}
        return LayerUpdate({**muted, "bias": added}, 1.0)
    bias = multiplied(added, 1 / update.scale)
    return replace(update, parts={**parts, "bias": add_exactly(bias, parts["bias"]) if "bias" in parts else bias})


def dense_delta(update: LayerUpdate, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """
    `delta W` as a dense matrix, without DoRA.

    Args:
        update (`LayerUpdate`):
            Any kind.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            What it is computed in.

    Returns:
        `torch.Tensor` of shape `(out_features, in_features)`, or `None` if the matrix is not updated.
    """
    parts = {name: part.to(dtype) for name, part in update.parts.items()}
    delta = parts.get("diff")
    if update.kind == "lora":
        product = parts["up"] @ parts["down"]
    elif update.kind == "loha":
        product = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif update.kind == "lokr":
        product = torch.kron(*(_multiplied_out(parts, factor) for factor in ("lokr_w1", "lokr_w2")))
    else:
        return delta
    product = product * update.scale
    return product if delta is None else product + delta


def bias_delta(update: LayerUpdate, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """What is added to the layer's bias: `scale * bias + diff_b`, `None` if there is neither."""
    factors = {"bias": update.scale, "diff_b": 1.0}
    found = [update.parts[name].to(dtype) * factor for name, factor in factors.items() if name in update.parts]
    return sum(found[1:], found[0]) if found else None
