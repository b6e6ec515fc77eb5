"""A frozen transformer in 8 or 4 bits: what it keeps is a half or a quarter, what it computes in stays as it was."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .choices import choose


FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max


class FP8Linear(nn.Linear):
    """A frozen Linear whose weight is kept in 8 bits, with a scale for each row, and raised where it is used.

    Neither pass keeps the raised weight: the backward pass raises it again.

    Args:
        layer (`torch.nn.Linear`): The layer that it stands for; its bias is shared.
    """

    scale: torch.Tensor
    streams_bytes = True

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        rows = layer.weight.detach().float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _LARGEST
        # As bytes, which no cast of the model changes, and which every backend sends to other processes.
        self.weight = nn.Parameter((rows / scale).to(FP8).view(torch.uint8), requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale)

    def raised(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight that it computes with, `(out_features, in_features)`, in a data type."""
        return _raise(self.weight, self.scale, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer, as `torch.nn.Linear` does."""
        return _FrozenLinear.apply(input, self.weight, self.scale, self.bias)


class _FrozenLinear(torch.autograd.Function):
    """A Linear whose weight has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(input, _raise(weight, scale, input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ _raise(weight, scale, gradient.dtype), None, None, None


def _raise(weight: Any, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.view(FP8).float() * scale).to(dtype)


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    made = Linear4bit(*sizes, compute_dtype=layer.weight.dtype, quant_type="nf4")
    made.load_state_dict(layer.state_dict())
    # Where a CPU has the instructions, weights would be packed anew for inference, without a backward pass.
    made.support_avx512bf16_for_cpu = False
    # Its weight is packed when the layer comes to a device.
    return made.to(layer.weight.device).requires_grad_(False)


STORAGES: dict[str, Callable[[nn.Linear], nn.Module]] = {"fp8": FP8Linear, "nf4": _nf4}
"""How the Linears of blocks are stored, by name."""

BYTES = {"fp8": 1.0, "nf4": 0.5}
"""Bytes of a weight, without its share of the scales."""


NF4_BLOCK = 64
"""Numbers that share a scale."""


def check_storage(storage: str | None) -> None:
    """Raise an `ImportError` if a way of storing needs a package that is not installed."""
    if storage == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "`model.storage: nf4` needs a package that is not installed: run `pip install bitsandbytes`."
        )


@torch.no_grad()
def store_frozen(transformer: nn.Module, storage: str) -> None:
    """Store the Linears of a transformer's blocks in fewer bits, one after the other; the rest stays as it is.

    Embedders and the last layers are a hundredth of FLUX.1's weights, and are the ones that rounding harms most.

    Args:
        transformer (`FluxTransformer2DModel`): The model, frozen and without adapters.
        storage (`str`):
            `"fp8"`: 8 bits (e4m3) and a float32 scale for each row. `"nf4"`: bitsandbytes' 4 bits, in blocks of 64.

    Raises:
        ValueError: if the name is unknown, something is to be trained in the transformer already, or a layer's inputs
            are no multiple of the blocks of 64, which bitsandbytes reads wrongly on CPUs.
        ImportError: if bitsandbytes is not installed.
    """
    make = choose(STORAGES, storage, "storage")
    check_storage(storage)
    trained = [name for name, parameter in transformer.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"A transformer is stored in fewer bits only while all of it is frozen, but `{trained[0]}` is trained. "
            f"Freeze it, or add adapters afterwards."
        )
    layers = _layers(transformer)
    if storage == "nf4":
        _check_blocks(layers)
    for name, layer in layers:
        owner, _, last = name.rpartition(".")
        setattr(transformer.get_submodule(owner), last, make(layer))


def _check_blocks(layers: Sequence[tuple[str, nn.Linear]]) -> None:
    for name, layer in layers:
        if layer.in_features % NF4_BLOCK:
            raise ValueError(
                f"`nf4` keeps weights in blocks of {NF4_BLOCK}, but `{name}` has {layer.in_features} inputs, which is "
                f"no multiple of it; bitsandbytes reads such layers wrongly on CPUs. Take `fp8`."
            )


def planned_bytes(transformer: nn.Module, storage: str | None, dtype: torch.dtype) -> int:
    """Return the bytes that the weights of a transformer will take.

    Args:
        transformer (`FluxTransformer2DModel`): The model, which may be on the meta device.
        storage (`str`, *optional*): See [`store_frozen`].
        dtype (`torch.dtype`): Of what is not stored in fewer bits.

    Returns:
        `int`
    """
    total = sum(parameter.numel() for parameter in transformer.parameters()) * dtype.itemsize
    if storage is None:
        return total
    saved = sum(layer.weight.numel() for _, layer in _layers(transformer)) * (dtype.itemsize - BYTES[storage])
    return total - round(saved)


def _layers(transformer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [
        (name, layer)
        for name, layer in transformer.named_modules()
        if type(layer) is nn.Linear and "transformer_blocks." in name
    ]
