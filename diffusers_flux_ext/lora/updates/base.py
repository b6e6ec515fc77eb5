"""What a LoRA file does to one layer. Every kind of update is a class; `KINDS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import LoRAError
from .exact import add_exactly, alpha_tensor, lossless, multiplied, swap_halves
from .modules import DenseDelta


# Parts with a row for every output; all others belong to the whole layer.
_ROW_PARTS = frozenset({"up", "bias", "hada_w1_a", "hada_w2_a", "diff", "diff_b"})
Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Update:
    """The update of one layer, `delta W = scale * up @ down` or another product of its parts.

    Attributes:
        parts (`Mapping[str, torch.Tensor]`): The factors as stored, by canonical name: `down` `(rank, in_features)`,
            `up` `(out_features, rank)`, `bias` `(out_features,)`, `magnitude`, LyCORIS' `hada_*` and `lokr_*`, or
            `diff` and `diff_b`. A joined `up` is a [`BlockMatrix`].
        scale (`float`): Factor of the product and `bias`; never `diff` and `diff_b`.
        alpha (`torch.Tensor`, *optional*): Alpha as stored, in its shape and dtype.
    """

    parts: Parts
    scale: float = 1.0
    alpha: Tensor | None = None

    # Its name in reports, and in errors.
    label: ClassVar[str]
    title: ClassVar[str]
    # Parts of its product, and those that are zeros in one that is muted: the first of these that is there.
    own: ClassVar[frozenset[str]] = frozenset()
    first: ClassVar[tuple[str, ...]] = ()
    # Parts whose first axis is the rank, or the rows of the layer, and those whose second one is its columns.
    ranked: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[tuple[str, ...]] = ()
    # Pairs of parts that are multiplied.
    chains: ClassVar[tuple[tuple[str, str], ...]] = ()
    # Whether PEFT scales it even if it has no rank, and whether its parts have rows that can be cut.
    scaled_without_rank: ClassVar[bool] = False
    has_rows: ClassVar[bool] = True

    @classmethod
    def owns(cls, parts: Parts) -> bool:
        """Whether a layer with these parts has an update of this kind."""
        return not cls.own.isdisjoint(parts)

    @classmethod
    def is_complete(cls, parts: Parts) -> bool:
        """Whether none of its parts is missing."""
        return cls.own <= parts.keys()

    @property
    def inner(self) -> Update:
        """The update without modifications: DoRA's magnitudes, or the modulation by the timestep."""
        return self

    @property
    def is_plain(self) -> bool:
        """Whether PEFT's own LoRA layer computes it best, from [`to_lora`]."""
        return False

    @property
    def rank(self) -> int | None:
        """The number by which alpha is divided, `None` where there is no such number."""
        return next((self.parts[name].shape[0] for name in self.ranked if name in self.parts), None)

    @property
    def out_features(self) -> int:
        """Rows of the layer."""
        size = self._size(0, (*self.rows, "diff_b", "bias"))
        if size is None:
            raise LoRAError(f"No part of a layer shows how many outputs it has; it has {sorted(self.parts)}.")
        return size

    @property
    def in_features(self) -> int | None:
        """Columns of the layer, `None` if no part shows them."""
        return self._size(1, self.columns)

    def _size(self, axis: int, names: Sequence[str]) -> int | None:
        return next((self.parts[name].shape[axis] for name in names if name in self.parts), None)

    def check_static(self, name: str) -> None:
        """Raise an [`UnsupportedLoRAError`] if the update depends on more than its own tensors."""

    def fits(self) -> bool:
        """Whether the shapes of its parts go together."""
        parts = self.parts
        if any(a in parts and b in parts and parts[a].shape[1] != parts[b].shape[0] for a, b in self.chains):
            return False
        vectors = [parts[part] for part in ("bias", "diff_b") if part in parts]
        return all(vector.ndim == 1 and vector.shape[0] == self.out_features for vector in vectors)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """`delta W` of shape `(out_features, in_features)`, without DoRA; `None` if the matrix is not updated."""
        return self._product({name: part.to(dtype) for name, part in self.parts.items()}) * self.scale

    def _product(self, parts: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def bias_delta(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return the change of the layer's bias: `scale * bias + diff_b`, `None` if there is neither."""
        factors = {"bias": self.scale, "diff_b": 1.0}
        found = [self.parts[name].to(dtype) * factor for name, factor in factors.items() if name in self.parts]
        return sum(found[1:], found[0]) if found else None

    def squared_norm(self) -> float:
        """`norm(delta W) ** 2` from matrices of the rank's size, or of the layer's if that is smaller."""
        pair = replace(self, parts={n: p for n, p in self.parts.items() if n != "diff_b"}).to_lora()
        up, down = pair.parts["up"].float(), pair.parts["down"].float()
        if up.shape[1] > min(up.shape[0], down.shape[1]):
            return float((self.scale * (up @ down).norm()) ** 2)
        return float(self.scale**2 * ((up.T @ up) * (down @ down.T)).sum())

    def factors(self) -> tuple[Tensor, Tensor]:
        """`up` and `down` of the same product, in float32, of a rank no larger than the layer."""
        raise NotImplementedError

    def to_lora(self) -> Update:
        """Return the same update as a LoRA, exactly.

        A LoKr `kron(a b, c d)` is `kron(a, c) @ kron(b, d)`, a LoHa the Khatri-Rao product of its factors (of rank
        `rank ** 2`), a dense matrix the product with an identity. The rank grows, the update does not change.

        Returns:
            `Update`: With `up` and `down` in place of the other factors, and `bias` in place of `diff_b`. `alpha` is
            folded into `scale`. An update of the bias alone is unchanged.
        """
        whole = self._with_one_bias()
        up, down = whole.factors()
        stored = next(iter(whole.parts.values())).dtype
        bias = {name: part for name, part in whole.parts.items() if name == "bias"}
        return LoRA({"down": lossless(down, stored), "up": lossless(up, stored), **bias}, whole.scale)

    def _with_one_bias(self) -> Update:
        """`diff_b`, which is never scaled, as `bias`, which is."""
        if "diff_b" not in self.parts:
            return self
        parts = dict(self.parts)
        added = parts.pop("diff_b")
        if self.scale == 0:
            muted = next(name for name in self.first if name in parts)
            return replace(self, parts={**parts, muted: torch.zeros_like(parts[muted]), "bias": added}, scale=1.0,
                           alpha=None)  # fmt: skip
        bias = multiplied(added, 1 / self.scale)
        return replace(self, parts={**parts, "bias": add_exactly(bias, parts["bias"]) if "bias" in parts else bias})

    def module(self, dtype: torch.dtype, with_bias: bool) -> nn.Module:
        """Return the module that computes the update in place of PEFT's `lora_B`.

        Args:
            dtype (`torch.dtype`): Of its parameters.
            with_bias (`bool`): Whether it has a bias even if the update has none, as PEFT expects.
        """
        return DenseDelta(cast(Tensor, self.dense()).to(dtype), self._module_bias(dtype, with_bias))

    def _module_bias(self, dtype: torch.dtype, with_bias: bool) -> Tensor | None:
        bias = self.bias_delta()
        if bias is None and with_bias:
            bias = torch.zeros(self.out_features)
        return None if bias is None else bias.to(dtype)

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> Update:
        """Apply `function` to every part that has a row for every output."""
        parts = {name: function(part) if name in _ROW_PARTS else part for name, part in self.parts.items()}
        return replace(self, parts=parts)

    def swap_rows(self) -> Update:
        """Return the update with the two halves of its rows exchanged."""
        return self.map_rows(swap_halves)

    def split_rows(self, shares: Sequence[int], name: str) -> list[Update | None]:
        """Split a fused layer into its parts.

        Parts share `down`, as one object. If the columns of `up` form blocks, as they do after [`join_rows`], each
        part keeps its own columns and rows of `down` only, and a part without an update is `None`.

        Args:
            shares (`Sequence[int]`): The rows of each part, as shares of the whole.
            name (`str`): The layer's name for errors.

        Returns:
            `list`: An update for each part.

        Raises:
            LoRAError: If the rows cannot be divided so.
            UnsupportedLoRAError: If DoRA magnitudes belong to inputs, so that they mix the parts.
        """
        unit, rest = divmod(self.out_features, sum(shares))
        if rest or unit == 0:
            raise LoRAError(
                f"`{name}` updates {self.out_features} outputs; a fused layer of {len(shares)} parts has a multiple "
                f"of {sum(shares)}."
            )
        starts = [sum(shares[:i]) * unit for i in range(len(shares) + 1)]
        whole = self if self.inner.has_rows else self.to_lora()
        cuts = [whole.map_rows(itemgetter(slice(*ends))) for ends in zip(starts, starts[1:])]
        return whole.inner.without_blocks(cuts) if len(shares) > 1 else list(cuts)

    def without_blocks(self, cuts: list[Update]) -> list[Update | None]:
        """Undoes the block structure that a join has given to the parts of a layer, if there is one."""
        return list(cuts)

    def with_known_scale(self) -> Update:
        """Return the same update, with no scale that readers other than PEFT would not see."""
        return self

    def applied(self, weight: Tensor, strength: float, name: str) -> Tensor:
        """Return a weight with the update in it, in float32.

        Args:
            weight (`torch.Tensor`): The weight, in float32.
            strength (`float`): What the change is multiplied with.
            name (`str`): The layer's name for errors.

        Raises:
            LoRAError: If the weight has another shape.
        """
        delta = self.dense()
        if delta is None:
            return weight
        if delta.shape != weight.shape:
            raise LoRAError(
                f"`{name}` is updated by a matrix of shape {tuple(delta.shape)}, it has {tuple(weight.shape)}."
            )
        return weight + strength * delta


class LoRA(Update):
    """`scale * up @ down` (https://arxiv.org/abs/2106.09685)."""

    label, title = "lora", "LoRA"
    own, first, chains = frozenset({"down", "up"}), ("up",), (("up", "down"),)
    ranked, rows, columns = ("down",), ("up",), ("down",)
    is_plain = True

    def _product(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["up"] @ parts["down"]

    def to_lora(self) -> Update:
        return self._with_one_bias()

    def without_blocks(self, cuts: list[Update]) -> list[Update | None]:
        # A trained fused layer has no blocks.
        if not any(bool((cut.parts["up"][0].float() == 0).any()) for cut in cuts):
            return list(cuts)
        used = [torch.any(cut.parts["up"].float().ne(0), 0) for cut in cuts]
        supports: list[Tensor] = []
        for columns in used:
            if columns.any() and not any(torch.equal(columns, other) for other in supports):
                supports.append(columns)
        if not supports or bool((torch.stack(supports).sum(0) > 1).any()):
            return list(cuts)
        downs = [cuts[0].parts["down"][columns] for columns in supports]
        return [_narrowed(cut, columns, supports, downs) for cut, columns in zip(cuts, used)]


def _narrowed(cut: Update, columns: Tensor, supports: Sequence[Tensor], downs: Sequence[Tensor]) -> Update | None:
    """Return a part with its own columns of `up` only; `down` is one object for all parts with the same columns."""
    if not columns.any():
        return None if not ({"bias", "magnitude", "diff_b"} & cut.parts.keys()) else cut
    if columns.all():
        return cut
    down = next(down for down, other in zip(downs, supports) if torch.equal(columns, other))
    parts = {**cut.parts, "down": down, "up": cut.parts["up"][:, columns]}
    alpha = None if cut.alpha is None else alpha_tensor(cut.scale * int(columns.sum()), cut.alpha)
    return replace(cut, parts=parts, alpha=alpha)
