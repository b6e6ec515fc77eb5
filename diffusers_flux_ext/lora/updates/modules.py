"""Modules that compute an update which is not `up @ down`, in place of the `lora_B` of PEFT's LoRA layers."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from ...checkpoints.packed_weights import unpacked_weight
from ..errors import LoRAError


def magnitude_axis(magnitude: Tensor) -> str:
    """`"in"` for DoRA magnitudes of shape `(1, in_features)`, `"out"` for `(out_features,)` or `(out_features, 1)`."""
    return "in" if magnitude.ndim == 2 and magnitude.shape[0] == 1 and magnitude.shape[1] != 1 else "out"


def sinusoids(timestep: Tensor, size: int) -> Tensor:
    """FLUX.1's first embedding of timesteps in [0, 1000]: cosines, then sines; `(batch, size)`."""
    return get_timestep_embedding(timestep, size, flip_sin_to_cos=True, downscale_freq_shift=0)


class Delta(nn.Module):
    """The change of a Linear's output, at an adapter weight of 1.

    Args:
        weight (`torch.Tensor`): A factor of the update. PEFT takes device and dtype from it.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Added to the layer's bias.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    base: nn.Module

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x @ delta W.T` for `x` of shape `(..., in_features)`; `dtype` is the base layer's."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """`delta W` of shape `(out_features, in_features)`."""
        raise NotImplementedError

    def prepare(self, base: nn.Module) -> None:
        """Receive the layer that is changed, while its weights are available."""
        # Not as a submodule, and not as an argument of `forward`, which offloading hooks would move.
        self.__dict__["base"] = base

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        added = self.product(x, dtype)
        return added if self.bias is None else added + self.bias


class DenseDelta(Delta):
    """A dense `delta W`."""

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> Tensor:
        return self.weight


class KroneckerDelta(Delta):
    """`delta W = kron(first, weight)`, applied without forming it (LyCORIS, https://arxiv.org/abs/2309.14859).

    Args:
        first (`torch.Tensor` of shape `(a, b)`): Outer factor.
        weight (`torch.Tensor` of shape `(c, d)`): Inner factor; the layer has `a * c` outputs and `b * d` inputs.
        bias (`torch.Tensor` of shape `(a * c,)`, *optional*): Added to the layer's bias.
    """

    def __init__(self, first: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.first = nn.Parameter(first, requires_grad=False)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        blocks = F.linear(x.unflatten(-1, (self.first.shape[1], self.weight.shape[1])), self.weight)
        return torch.einsum("ij,...jk->...ik", self.first, blocks).flatten(-2)

    def dense(self) -> Tensor:
        return torch.kron(self.first, self.weight)


class DoRADelta(Delta):
    """The change that DoRA makes, `m * V / norm(V) - W` with `V = W + up @ down` (https://arxiv.org/abs/2402.09353).

    Args:
        down (`torch.Tensor` of shape `(rank, in_features)`): First factor.
        up (`torch.Tensor` of shape `(out_features, rank)`): Second factor, with the scale in it.
        magnitude (`torch.Tensor` of shape `(out_features, 1)` or `(1, in_features)`): The norms of the rows, or of the
            columns, that `V` is brought to.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Added to the layer's bias.
    """

    factor: Tensor

    def __init__(self, down: Tensor, up: Tensor, magnitude: Tensor, bias: Tensor | None) -> None:
        super().__init__(down, bias)
        self.up = nn.Parameter(up, requires_grad=False)
        self.axis = 0 if magnitude_axis(magnitude) == "in" else 1
        shape = (1, -1) if self.axis == 0 else (-1, 1)
        self.magnitude = nn.Parameter(magnitude.reshape(shape), requires_grad=False)
        self.register_buffer("factor", None, persistent=False)

    def prepare(self, base: nn.Module) -> None:
        """Compute the factors of the rows, or columns, of `V`. The base weights do not change afterwards."""
        super().prepare(base)
        norms = self._tuned().norm(dim=self.axis, keepdim=True)
        self.factor = (self.magnitude.float().to(norms.device) / norms).to(self.magnitude)

    def _tuned(self) -> Tensor:
        weight = unpacked_weight(self.base).to(self.up.device, torch.float32)
        return weight + self.up.float() @ self.weight.float()

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        factor = self.factor.flatten()
        if self.axis == 0:
            scaled = x * factor
            return _without_bias(self.base, scaled - x, dtype) + F.linear(F.linear(scaled, self.weight), self.up)
        return _without_bias(self.base, x, dtype) * (factor - 1) + F.linear(F.linear(x, self.weight), self.up) * factor

    def dense(self) -> Tensor:
        weight = unpacked_weight(self.base).to(self.up.device, torch.float32)
        return self._tuned() * self.factor.float() - weight


def _without_bias(base: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    # Through the layer itself: its weights may be quantised, stored in 8 bits or offloaded, and its bias with them.
    return (base(x.to(dtype)) - base(torch.zeros_like(x[..., :1, :], dtype=dtype))).to(x.dtype)


class Clock(Protocol):
    """Knows the timesteps of the current call of a transformer."""

    def read(self, size: int) -> Tensor:
        """Their embedding, `(batch, size)` in float32."""


class TimestepDelta(nn.Module):
    """`up @ (gamma(t) * (down @ x) + beta(t))`, with `gamma` and `beta` affine in the sinusoids of the timestep.

    Args:
        down (`torch.Tensor` of shape `(rank, in_features)`): First factor.
        up (`torch.Tensor` of shape `(out_features, rank)`): Second factor.
        modulation (`torch.Tensor` of shape `(2 * rank, size)`): Weights of `gamma`, then of `beta`.
        shift (`torch.Tensor` of shape `(2 * rank,)`): Their biases.
    """

    clock: Clock

    def __init__(self, down: Tensor, up: Tensor, modulation: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.down, self.up, self.modulation = _linear(down), _linear(up), _linear(modulation, shift)

    @property
    def weight(self) -> Tensor:
        """The tensor that PEFT reads device and dtype from."""
        return self.up.weight

    def prepare(self, base: nn.Module) -> None:
        """Do nothing: the update does not depend on the layer."""

    def dense(self) -> Tensor:
        """Raise a [`LoRAError`]."""
        raise LoRAError(
            "A timestep LoRA is another update at every timestep: it cannot be fused into the weights. "
            "`bake_timestep_lora` gives the LoRA of one timestep, which can."
        )

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        time = self.clock.read(self.modulation.in_features).to(x)
        modulation = self.modulation(time).unflatten(0, (-1, *[1] * (x.ndim - 2)))
        gamma, beta = modulation.chunk(2, dim=-1)
        return self.up(torch.addcmul(beta, self.down(x), gamma))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer
