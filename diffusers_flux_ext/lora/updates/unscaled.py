"""Updates without a scale: dense matrices, biases and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import LoRA, Parts, Update
from .exact import add_exactly, lossless, multiplied, with_identity


class Unscaled(Update):
    """An update whose `bias` alone is scaled."""

    def _with_one_bias(self) -> Update:
        if "diff_b" not in self.parts:
            return self
        rest = {name: part for name, part in self.parts.items() if name != "diff_b"}
        bias = self.parts["diff_b"]
        if "bias" in rest:
            bias = add_exactly(multiplied(rest["bias"], self.scale), bias)
        return type(self)({**rest, "bias": bias})


class Dense(Unscaled):
    """A dense matrix `diff`."""

    label, title = "diff", "matrix"
    own, rows, columns = frozenset({"diff"}), ("diff",), ("diff",)

    @classmethod
    def owns(cls, parts: Parts) -> bool:
        return "diff" in parts and parts["diff"].ndim == 2

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return self.parts["diff"].to(dtype)

    def squared_norm(self) -> float:
        return float(self.parts["diff"].float().norm() ** 2)

    def to_lora(self) -> Update:
        whole = self._with_one_bias()
        stored = next(iter(whole.parts.values())).dtype
        up, down = with_identity(self.parts["diff"].float())
        parts = {"down": lossless(down, stored), "up": lossless(up, stored)}
        if "bias" in whole.parts:
            parts["bias"] = multiplied(whole.parts["bias"], whole.scale)
        return LoRA(parts)


class Bias(Unscaled):
    """An update of the bias alone."""

    label, title = "bias", "bias"
    is_plain = True

    @classmethod
    def owns(cls, parts: Parts) -> bool:
        return True

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return None

    def squared_norm(self) -> float:
        return 0.0

    def to_lora(self) -> Update:
        return self._with_one_bias()


class Norm(Bias):
    """A vector that is added to the weight of a norm (`diff`, `w_norm`), or replaces it (`set`, `set_weight`)."""

    label, title = "norm", "norm"
    own = frozenset({"set", "set_weight", "w_norm", "b_norm", "diff"})
    rows = ("diff",)

    @classmethod
    def owns(cls, parts: Parts) -> bool:
        return not cls.own.isdisjoint(parts)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return self.parts["diff"].to(dtype) if "diff" in self.parts else None

    def squared_norm(self) -> float:
        return float(self.parts["diff"].float().norm() ** 2) if "diff" in self.parts else 0.0

    def applied(self, weight: Tensor, strength: float, name: str) -> Tensor:
        for part in ("set", "set_weight"):
            if part in self.parts:
                return self.parts[part].float()
        added = next((self.parts[part] for part in ("diff", "w_norm") if part in self.parts), None)
        return weight if added is None else weight + strength * added.float()
