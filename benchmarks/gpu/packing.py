"""Ways to store a transformer's weights in fewer bits, on the card."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.kit import Missing


# What conditions add goes through this layer, which must stay as it is.
KEPT = ("x_embedder",)
BLOCK = 32


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # A library for other kernels may fail to load in any way.
        raise Missing(f"{what} cannot be had: {type(error).__name__}: {error}") from error


def _packs(layer: nn.Module, path: str) -> bool:
    return isinstance(layer, nn.Linear) and not path.endswith(KEPT)


def layerwise_fp8(model: Any, dtype: torch.dtype) -> None:
    """Store weights as fp8 without scales, by diffusers' layerwise casting."""
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def _torchao(config: str, **dtypes: str) -> Callable[[Any, torch.dtype], None]:
    def pack(model: Any, dtype: torch.dtype) -> None:
        quantization = _library("torchao.quantization", "torchao")
        arguments = {name: getattr(torch, dtype) for name, dtype in dtypes.items()}
        quantization.quantize_(model, getattr(quantization, config)(**arguments), _packs)

    return pack


def _quanto(kind: str) -> Callable[[Any, torch.dtype], None]:
    def pack(model: Any, dtype: torch.dtype) -> None:
        quanto = _library("optimum.quanto", "optimum-quanto")
        quanto.quantize(model, weights=getattr(quanto, kind), exclude=[f"*{name}" for name in KEPT])
        quanto.freeze(model)

    return pack


def _bitsandbytes(kind: str) -> Callable[[Any, torch.dtype], None]:
    def pack(model: Any, dtype: torch.dtype) -> None:
        layers = _library("bitsandbytes", "bitsandbytes").nn

        def packed(layer: nn.Linear) -> nn.Module:
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            if kind == "nf4":
                new = layers.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
            else:
                new = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.load_state_dict(layer.state_dict())
            # Moving to the card packs the weights.
            return new.to(layer.weight.device)

        _replace(model, packed)

    return pack


def _gguf(kind: str) -> Callable[[Any, torch.dtype], None]:
    def pack(model: Any, dtype: torch.dtype) -> None:
        gguf = _library("gguf", "gguf")
        utils = _library("diffusers.quantizers.gguf.utils", "diffusers' layers for GGUF")
        number = gguf.GGMLQuantizationType[kind]

        def packed(layer: nn.Linear) -> nn.Module:
            with torch.device("meta"):
                new = utils.GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, dtype)
            new.weight = utils.GGUFParameter(GGUF[kind](layer.weight), quant_type=number)
            new.bias = layer.bias
            return new

        _replace(model, packed, BLOCK)

    return pack


def _replace(model: Any, packed: Callable[[nn.Linear], nn.Module], block: int = 1) -> None:
    """Replace one Linear after the other, so that both forms of all weights are never there at once."""
    for path, layer in [(path, layer) for path, layer in model.named_modules() if _packs(layer, path)]:
        if layer.in_features % block:
            continue
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, packed(layer).requires_grad_(False))


def q8_0(weight: torch.Tensor) -> torch.Tensor:
    """Pack a matrix as llama.cpp's Q8_0: a 16-bit scale and 32 signed bytes for each 32 numbers of a row.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`): Columns are a multiple of 32.

    Returns:
        `torch.Tensor` of shape `(rows, 34 * columns / 32)`: bytes.
    """
    blocks = weight.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    numbers = (blocks * scale.reciprocal().nan_to_num(posinf=0.0)).round().to(torch.int8)
    return torch.cat([scale.half().view(torch.uint8), numbers.view(torch.uint8)], 1).reshape(len(weight), -1)


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """Pack a matrix as llama.cpp's Q4_0: a 16-bit scale and 32 numbers in 16 bytes for each 32 numbers of a row.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`): Columns are a multiple of 32.

    Returns:
        `torch.Tensor` of shape `(rows, 18 * columns / 32)`: bytes.
    """
    blocks = weight.float().reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    numbers = (blocks * scale.reciprocal().nan_to_num(posinf=0.0, neginf=0.0) + 8.5).floor().clamp(0, 15)
    low, high = numbers.to(torch.uint8).chunk(2, 1)
    return torch.cat([scale.half().view(torch.uint8), low | high << 4], 1).reshape(len(weight), -1)


GGUF: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"Q8_0": q8_0, "Q4_0": q4_0}
KINDS: dict[str, Callable[[Any, torch.dtype], None]] = {
    "fp8, layerwise casting": layerwise_fp8,
    "torchao, int8 weights": _torchao("Int8WeightOnlyConfig"),
    "torchao, fp8 weights": _torchao("Float8WeightOnlyConfig"),
    "torchao, fp8 weights and activations": _torchao("Float8DynamicActivationFloat8WeightConfig"),
    "torchao, int4 weights": _torchao("IntxWeightOnlyConfig", weight_dtype="int4"),
    "bitsandbytes, nf4": _bitsandbytes("nf4"),
    "bitsandbytes, int8": _bitsandbytes("int8"),
    "GGUF Q8_0": _gguf("Q8_0"),
    "GGUF Q4_0": _gguf("Q4_0"),
    "quanto, int8": _quanto("qint8"),
    "quanto, fp8": _quanto("qfloat8"),
}
