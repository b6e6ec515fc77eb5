"""All kinds of updates, and those that modify another one: DoRA, and what depends on more than its own tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedLoRAError
from ..keys import LoRAKey
from .base import LoRA, Parts, Update
from .exact import swap_halves
from .lycoris import LoHa, LoKr
from .modules import DoRADelta, TimestepDelta, magnitude_axis, sinusoids
from .unscaled import Bias, Dense, Norm


GAMMA, BETA = "lora_time_gamma", "lora_time_beta"
TIMED_PARTS = sorted(f"{name}.{part}" for name in (GAMMA, BETA) for part in ("weight", "bias"))


class Wrapped(Update):
    """An update that modifies another one, which is made of the rest of its parts."""

    marks: ClassVar[tuple[str, ...]]

    @classmethod
    def owns(cls, parts: Parts) -> bool:
        return any(part.startswith(cls.marks) for part in parts)

    @cached_property
    def inner(self) -> Update:
        rest = {name: part for name, part in self.parts.items() if not name.startswith(self.marks)}
        return update_of(rest, self.scale, self.alpha).inner

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def out_features(self) -> int:
        return self.inner.out_features

    @property
    def in_features(self) -> int | None:
        return self.inner.in_features

    def fits(self) -> bool:
        return self.inner.fits()

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return self.inner.dense(dtype)

    def squared_norm(self) -> float:
        return self.inner.squared_norm()

    def to_lora(self) -> Update:
        return self._around(self.inner.to_lora())

    def with_known_scale(self) -> Update:
        return self._around(self.inner.with_known_scale())

    def map_rows(self, function: Callable[[Tensor], Tensor]) -> Update:
        return self._around(self.inner.map_rows(function), function)

    def swap_rows(self) -> Update:
        return self._around(self.inner.swap_rows(), swap_halves)

    def _around(self, inner: Update, function: Callable[[Tensor], Tensor] | None = None) -> Update:
        """Return the same modification of another update, with `function` applied to its parts that have rows."""
        own = {name: part for name, part in self.parts.items() if name not in self.inner.parts}
        if function is not None:
            own = {name: function(part) if self._has_rows(part) else part for name, part in own.items()}
        return replace(self, parts={**inner.parts, **own}, scale=inner.scale, alpha=inner.alpha)

    def _has_rows(self, part: Tensor) -> bool:
        return False


class DoRA(Wrapped):
    """An update whose rows or columns are brought to given norms (https://arxiv.org/abs/2402.09353)."""

    label, title = "dora", "DoRA"
    marks = ("magnitude",)

    @property
    def magnitude(self) -> Tensor:
        """The norms, of shape `(out_features,)`, `(out_features, 1)` or `(1, in_features)`."""
        return self.parts["magnitude"]

    def _has_rows(self, part: Tensor) -> bool:
        return magnitude_axis(part) == "out"

    def fits(self) -> bool:
        if isinstance(self.inner, Bias):
            return True
        size = self.in_features if magnitude_axis(self.magnitude) == "in" else self.out_features
        return self.magnitude.ndim in (1, 2) and self.magnitude.numel() == size and super().fits()

    def split_rows(self, shares: Sequence[int], name: str) -> list[Update | None]:
        if magnitude_axis(self.magnitude) == "in":
            raise UnsupportedLoRAError(
                f"The DoRA magnitudes of `{name}` belong to inputs, shape {tuple(self.magnitude.shape)}. Their norm "
                "runs over all parts of the fused layer, so they cannot be divided without the base weights."
            )
        return super().split_rows(shares, name)

    def module(self, dtype: torch.dtype, with_bias: bool) -> nn.Module:
        rest = {name: part for name, part in self.inner.parts.items() if name not in ("bias", "diff_b")}
        pair = replace(self.inner, parts=rest).to_lora()
        up = (pair.parts["up"].float() * pair.scale).to(dtype)
        bias = self._module_bias(dtype, with_bias)
        return DoRADelta(pair.parts["down"].to(dtype), up, self.magnitude.to(dtype), bias)

    def applied(self, weight: Tensor, strength: float, name: str) -> Tensor:
        if isinstance(self.inner, Bias):
            return weight
        tuned, magnitude = self.inner.applied(weight, 1.0, name), self.magnitude.float()
        axis = 0 if magnitude_axis(magnitude) == "in" else 1
        tuned = tuned * (magnitude.reshape((1, -1) if axis == 0 else (-1, 1)) / tuned.norm(dim=axis, keepdim=True))
        return weight + strength * (tuned - weight)


class Dynamic(Wrapped):
    """An update that depends on more than its own tensors, so that it cannot be loaded or converted as a LoRA."""

    label, title = "dynamic", "dynamic update"
    reasons: ClassVar[dict[tuple[str, ...], str]] = {
        ("oft_", "rescale"): "OFT, which multiplies the base weights",
        ("on_input",): "IA3, which multiplies the base weights",
        ("a1.", "a2.", "b1.", "b2.", "bm."): "GLoRA, whose update depends on the base weights",
    }
    marks = tuple(mark for marks in reasons for mark in marks)

    def check_static(self, name: str) -> None:
        reason = next(
            reason for marks, reason in self.reasons.items() if any(part.startswith(marks) for part in self.parts)
        )
        raise UnsupportedLoRAError(f"`{name}` is {reason}.")


class Timed(Dynamic):
    """A LoRA whose rank is modulated by the timestep; see [`load_timestep_lora`]."""

    label, title = "timestep", "timestep LoRA"
    marks = ("lora_time_",)
    reasons: ClassVar[dict[tuple[str, ...], str]] = {
        marks: "a timestep LoRA, whose update depends on the timestep. Load the file with `load_timestep_lora`"
    }

    def module(self, dtype: torch.dtype, with_bias: bool) -> nn.Module:
        parts = {name: part.to(dtype) for name, part in self.parts.items()}
        weight, bias = (torch.cat([parts[f"{name}.{part}"] for name in (GAMMA, BETA)]) for part in ("weight", "bias"))
        return TimestepDelta(parts["down"], parts["up"], weight, bias)

    def at(self, timestep: float, strength: float) -> LoRA:
        """Return the LoRA that it is at one timestep in [0, 1000], in float32."""
        parts = {name: part.float() for name, part in self.parts.items()}
        time = sinusoids(torch.tensor([timestep]), parts[f"{GAMMA}.weight"].shape[1])
        gamma, beta = (F.linear(time, parts[f"{name}.weight"], parts[f"{name}.bias"])[0] for name in (GAMMA, BETA))
        up = strength * parts["up"]
        return LoRA({"down": gamma[:, None] * parts["down"], "up": up, "bias": up @ beta})


# The first that owns the parts of a layer is its kind: what modifies another update comes first.
PRODUCTS: tuple[type[Update], ...] = (LoRA, LoHa, LoKr, Dense)
KINDS: tuple[type[Update], ...] = (Timed, Dynamic, DoRA, *PRODUCTS, Norm, Bias)


def update_of(parts: Parts, scale: float = 1.0, alpha: Tensor | None = None) -> Update:
    """Return the update that a layer's parts make up.

    Args:
        parts (`Mapping[str, torch.Tensor]`): The parts by canonical name.
        scale (`float`, *optional*, defaults to 1.0): Factor of the product and `bias`.
        alpha (`torch.Tensor`, *optional*): Alpha as stored.
    """
    return next(kind for kind in KINDS if kind.owns(parts))(parts, scale, alpha)


@dataclass(frozen=True)
class StoredLayer:
    """A layer as it is in a file: under one name, with all of its parts.

    Attributes:
        key (`LoRAKey`): One of its keys.
        update (`Update`): Its parts; `scale` is known once alpha and metadata have been read.
    """

    key: LoRAKey
    update: Update = field(repr=False)

    @property
    def name(self) -> str:
        """The layer as named in the file."""
        return self.key.prefix + self.key.body

    def diffusers_updates(self) -> list[Update | None]:
        """Return the updates of the diffusers layers that this one stacks, in diffusers' order of rows.

        Raises:
            LoRAError: If its rows cannot be divided.
            UnsupportedLoRAError: If it has DoRA magnitudes that mix its parts.
        """
        layer = self.key.layer
        if layer.swap_halves:
            return [self.update.swap_rows()]
        return [self.update] if len(layer.targets) == 1 else self.update.split_rows(layer.shares, self.name)
