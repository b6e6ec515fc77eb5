"""LyCORIS' products of factors: LoHa and LoKr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .base import Parts, Update
from .exact import multiplied, swap_halves, with_identity
from .modules import KroneckerDelta


class LoHa(Update):
    """`scale * (w1_a @ w1_b) * (w2_a @ w2_b)` (https://arxiv.org/abs/2108.06098)."""

    label, title = "loha", "LoHa"
    own, first = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), ("hada_w1_a",)
    ranked, rows, columns = ("hada_w1_b",), ("hada_w1_a",), ("hada_w1_b",)
    chains = (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))

    @property
    def is_plain(self) -> bool:
        # As a LoRA its rank is squared; above this rank the dense product is smaller.
        return 2 * (self.rank or 0) ** 2 <= min(self.out_features, self.in_features or 0)

    def fits(self) -> bool:
        shapes = [self.parts[f"hada_{name}"].shape for name in ("w1_a", "w2_a", "w1_b", "w2_b")]
        return shapes[0][0] == shapes[1][0] and shapes[2][1] == shapes[3][1] and super().fits()

    def _product(self, parts: Mapping[str, Tensor]) -> Tensor:
        return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])

    def factors(self) -> tuple[Tensor, Tensor]:
        a, b, c, d = (self.parts[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        if b.shape[0] * d.shape[0] > min(self.out_features, self.in_features or 1):
            return with_identity((a @ b) * (c @ d))
        return (a[:, :, None] * c[:, None, :]).flatten(1), (b[:, None, :] * d[None, :, :]).flatten(0, 1)


class LoKr(Update):
    """`scale * kron(w1, w2)`, where each factor may be a product itself (https://arxiv.org/abs/2309.14859)."""

    label, title = "lokr", "LoKr"
    own = frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"})
    first, ranked = ("lokr_w1", "lokr_w1_a"), ("lokr_w2_b", "lokr_w1_b")
    chains = (("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b"))
    scaled_without_rank, has_rows = True, False

    @classmethod
    def is_complete(cls, parts: Parts) -> bool:
        return all(
            factor in parts or {f"{factor}_a", f"{factor}_b"} <= parts.keys() for factor in ("lokr_w1", "lokr_w2")
        )

    @property
    def out_features(self) -> int:
        return self._kron_size(0, "a")

    @property
    def in_features(self) -> int:
        return self._kron_size(1, "b")

    def _kron_size(self, axis: int, side: str) -> int:
        sizes = [self._size(axis, (factor, f"{factor}_{side}")) or 0 for factor in ("lokr_w1", "lokr_w2")]
        return sizes[0] * sizes[1]

    def _product(self, parts: Mapping[str, Tensor]) -> Tensor:
        return torch.kron(*self._whole(parts))

    def _whole(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the two factors, each multiplied out."""
        first, second = (
            parts[factor] if factor in parts else parts[f"{factor}_a"] @ parts[f"{factor}_b"]
            for factor in ("lokr_w1", "lokr_w2")
        )
        return first, second

    def _whole_floats(self) -> tuple[Tensor, Tensor]:
        return self._whole({name: part.float() for name, part in self.parts.items()})

    def _pair(self, factor: str) -> tuple[Tensor, Tensor]:
        """Return a factor as a product with the smallest available inner size."""
        if factor in self.parts:
            return with_identity(self.parts[factor].float())
        return self.parts[f"{factor}_a"].float(), self.parts[f"{factor}_b"].float()

    def factors(self) -> tuple[Tensor, Tensor]:
        (a, b), (c, d) = self._pair("lokr_w1"), self._pair("lokr_w2")
        if b.shape[0] * d.shape[0] > min(self.out_features, self.in_features or 1):
            return with_identity(torch.kron(a @ b, c @ d))
        return torch.kron(a, c), torch.kron(b, d)

    def squared_norm(self) -> float:
        first, second = self._whole_floats()
        return float((self.scale * first.norm() * second.norm()) ** 2)

    def module(self, dtype: torch.dtype, with_bias: bool) -> nn.Module:
        first, second = self._whole_floats()
        return KroneckerDelta((first * self.scale).to(dtype), second.to(dtype), self._module_bias(dtype, with_bias))

    def swap_rows(self) -> Update:
        first = "lokr_w1" if "lokr_w1" in self.parts else "lokr_w1_a"
        if self.parts[first].shape[0] % 2:
            return self.to_lora().swap_rows()
        # The rows of a Kronecker product follow those of its first factor.
        halves = self.map_rows(swap_halves)
        return replace(halves, parts={**halves.parts, first: swap_halves(self.parts[first])})

    def with_known_scale(self) -> Update:
        """PEFT scales a LoKr of two whole factors; other readers use a scale of 1, whatever its alpha is."""
        if self.rank is not None or self.scale == 1:
            return self
        scaled = {name: multiplied(self.parts[name], self.scale) for name in ("lokr_w1", "bias") if name in self.parts}
        return LoKr({**self.parts, **scaled})
