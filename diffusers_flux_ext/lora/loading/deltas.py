"""Updates that are no `up @ down`, as variants of PEFT's LoRA layers: LoKr and dense deltas, and DoRA on either axis.

Each lives in the place of a layer's `lora_B`, so that PEFT switches, weighs, fuses and deletes it like any LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from ..dynamic import is_timed
from ..errors import LoRAError
from ..products import bias_delta, dense_delta, kron_factors, to_lora
from ..updates import LayerUpdate, magnitude_axis
from .fusing import check_layer


_DOWN = ".lora_A.weight"


class _Delta(nn.Module):
    """What is added to the output of a Linear, at an adapter weight of 1."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    base: nn.Module
    factor: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def dense(self) -> Tensor:
        """`delta W` of shape `(out_features, in_features)`."""
        raise NotImplementedError

    def prepare(self, base: nn.Module) -> None:
        """Takes the layer that is changed, while its weights are at hand."""
        # Not as a submodule, and not as an argument of `forward`, which offloading hooks would move.
        self.__dict__["base"] = base

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        added = self.product(x, dtype)
        return added if self.bias is None else added + self.bias


class DenseDelta(_Delta):
    """A dense `delta W`."""

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return F.linear(x, self.weight)

    def dense(self) -> Tensor:
        return self.weight


class KroneckerDelta(_Delta):
    """
    `delta W = kron(first, weight)`, applied without forming it (LyCORIS, https://arxiv.org/abs/2309.14859).

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


class DoRADelta(_Delta):
    """
    The change that DoRA makes, `m * V / norm(V) - W` with `V = W + up @ down` (https://arxiv.org/abs/2402.09353).

    Args:
        down (`torch.Tensor` of shape `(rank, in_features)`): First factor.
        up (`torch.Tensor` of shape `(out_features, rank)`): Second factor, with the scale in it.
        magnitude (`torch.Tensor` of shape `(out_features, 1)` or `(1, in_features)`): The norms of the rows, or of the
            columns, that `V` is brought to.
        bias (`torch.Tensor` of shape `(out_features,)`, *optional*): Added to the layer's bias.
    """

    def __init__(self, down: Tensor, up: Tensor, magnitude: Tensor, bias: Tensor | None) -> None:
        super().__init__(down, bias)
        self.up = nn.Parameter(up, requires_grad=False)
        self.axis = 0 if magnitude_axis(magnitude) == "in" else 1
        shape = (1, -1) if self.axis == 0 else (-1, 1)
        self.magnitude = nn.Parameter(magnitude.reshape(shape), requires_grad=False)
        self.register_buffer("factor", None, persistent=False)

    def prepare(self, base: nn.Module) -> None:
        """Computes what each row, or column, of `V` is multiplied with. The base weights do not change afterwards."""
        super().prepare(base)
        norms = self._tuned().norm(dim=self.axis, keepdim=True)
        self.factor = (self.magnitude.float().to(norms.device) / norms).to(self.magnitude)

    def _tuned(self) -> Tensor:
        weight = dequantize_module_weight(self.base).to(self.up.device, torch.float32)
        return weight + self.up.float() @ self.weight.float()

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        factor = self.factor.flatten()
        if self.axis == 0:
            scaled = x * factor
            return _without_bias(self.base, scaled - x, dtype) + F.linear(F.linear(scaled, self.weight), self.up)
        return _without_bias(self.base, x, dtype) * (factor - 1) + F.linear(F.linear(x, self.weight), self.up) * factor

    def dense(self) -> Tensor:
        weight = dequantize_module_weight(self.base).to(self.up.device, torch.float32)
        return self._tuned() * self.factor.float() - weight


def _without_bias(base: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    # Through the layer itself: its weights may be quantised, stored in 8 bits or offloaded, and its bias with them.
    return (base(x.to(dtype)) - base(torch.zeros_like(x[..., :1, :], dtype=dtype))).to(x.dtype)


class DeltaVariant(LoraVariant):
    """Has PEFT's LoRA layer add a delta module in place of `lora_B(lora_A(x))`."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        pass

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        delta = module.lora_B[active_adapter]
        return result + delta(x, result.dtype) * module.scaling[active_adapter]

    @staticmethod
    def _delta(module: Any, active_adapter: str, weight: Tensor) -> Tensor:
        dense = module.lora_B[active_adapter].dense()
        return (dense * module.scaling[active_adapter]).to(weight.dtype)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        check_layer(f"a layer of {active_adapter}", module.get_base_layer())
        return orig_weight + DeltaVariant._delta(module, active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        check_layer(f"a layer of {active_adapter}", module.get_base_layer())
        delta = DeltaVariant._delta(module, active_adapter, orig_weight)
        # Kept, because the change of a DoRA cannot be computed from the merged weights.
        module.lora_B[active_adapter].merged = delta
        orig_weight.data += delta

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        delta = module.lora_B[active_adapter].merged
        module.lora_B[active_adapter].merged = None
        return orig_weight.data - delta


def needs_variant(update: LayerUpdate) -> bool:
    """Whether an update is something else than a LoRA of moderate rank."""
    unlike = update.kind in ("lokr", "diff") or "magnitude" in update.parts
    return unlike or is_timed(update) or _is_large_loha(update)


def _is_large_loha(update: LayerUpdate) -> bool:
    # As a LoRA a LoHa has the square of its rank; beyond this one the dense product is smaller.
    size = min(update.out_features, update.in_features or 0)
    return update.kind == "loha" and 2 * (update.rank or 0) ** 2 > size


def make_delta(update: LayerUpdate, dtype: torch.dtype, with_bias: bool) -> _Delta:
    """
    The module that computes an update.

    Args:
        update (`LayerUpdate`):
            A LoKr, a dense update, a LoHa or a DoRA.
        dtype (`torch.dtype`):
            Of its parameters.
        with_bias (`bool`):
            Whether it has a bias even if the update has none, as PEFT wants it.

    Returns:
        `torch.nn.Module`: The module.
    """
    parts, scale = update.parts, update.scale
    bias = bias_delta(update)
    if bias is None and with_bias:
        bias = torch.zeros(update.out_features)
    bias = None if bias is None else bias.to(dtype)
    if "magnitude" in parts:
        pair = to_lora(replace(update, parts={n: p for n, p in parts.items() if n not in ("bias", "diff_b")}))
        up = (pair.parts["up"].float() * pair.scale).to(dtype)
        return DoRADelta(pair.parts["down"].to(dtype), up, parts["magnitude"].to(dtype), bias)
    if update.kind == "lokr":
        first, second = kron_factors(update)
        return KroneckerDelta((first * scale).to(dtype), second.to(dtype), bias)
    return DenseDelta(cast(Tensor, dense_delta(update)).to(dtype), bias)


def check_plain(layers: Mapping[str, Any]) -> None:
    """
    Refuses what a state dict of PEFT layers cannot say about updates that are no plain LoRAs.

    Args:
        layers (`Mapping[str, torch.Tensor]`):
            The state dict.

    Raises:
        LoRAError: If there is such an update.
    """
    ranks = {key.removesuffix(_DOWN): value.shape[0] for key, value in layers.items() if key.endswith(_DOWN)}
    for key, value in layers.items():
        layer, found, part = key.rpartition(".lora_B.")
        if found and (part not in ("weight", "bias") or part == "weight" and ranks.get(layer) != value.shape[1]):
            raise LoRAError(
                f"`{layer}` has a LoKr, a DoRA, a dense delta or a timestep LoRA, which PEFT's layers hold only while "
                "they are loaded. Use the file that it came from, or `convert_lora` on it."
            )
