"""Which models and layers can get adapters, and what DoRA needs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from ...checkpoints.layouts import list_keys
from ...lora.loading.load import tuned_layers
from ...lora.loading.plan import adapter_names
from .options import LoRAOptions


def check_model(model: nn.Module, component: str, name: str, options: LoRAOptions) -> None:
    """Raise a `ValueError` if a model cannot get a trainable adapter under this name."""
    if not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"`name` is {name!r}; expected a word without a dot that is not a method of `dict`.")
    if name in adapter_names(model):
        raise ValueError(f"`{component}` has an adapter {name!r} already. Choose another `name`.")
    if any(layer.merged for layer in tuned_layers(model)):
        raise ValueError(f"Adapters are fused into `{component}`, which hides others. Call `unfuse_lora` first.")
    if any(layer.disable_adapters for layer in tuned_layers(model)):
        raise ValueError(
            f"Adapters of `{component}` are disabled, which would disable this one, too. Enable them, or remove them."
        )
    own = "LOKR" if options.kind == "lokr" else "LORA"
    others = {str(config.peft_type.value) for config in getattr(model, "peft_config", {}).values()} - {own}
    if others:
        raise ValueError(
            f"`{component}` has adapters of PEFT's kinds {sorted(others)}; a {own} beside them is not possible. Load "
            f"them with `load_lora`, fuse them, or choose another `kind`."
        )
    if any(type(parameter).__name__ == "GGUFParameter" for parameter in model.parameters()):
        raise ValueError(
            f"`{component}` holds GGUF weights, which diffusers can only infer with. Train on the unquantised model, "
            f"or on one that is quantised with optimum-quanto, bitsandbytes or torchao."
        )
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        kind = quantizer.quantization_config.quant_method
        raise ValueError(
            f"`{component}` is quantised by {getattr(kind, 'value', kind)}, whose layers pass no gradient on. Train "
            f"on the unquantised model, or on one that is quantised with optimum-quanto or bitsandbytes."
        )


def check_biases(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if one of the layers has no bias."""
    without = [path for path in layers if getattr(base_layer(model, path), "bias", None) is None]
    if without:
        raise ValueError(f"`bias` is given, but these layers have none: {list_keys(without)}. Leave it out.")


def check_norms(model: nn.Module, component: str, layers: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if the lengths of the rows of one of the layers cannot be computed in training."""
    stored = [path for path in layers if _dtype(base_layer(model, path)).itemsize == 1]
    if stored:
        raise ValueError(
            f"`kind` 'dora' computes with the lengths of the weights' rows, which PEFT cannot for weights that are "
            f"stored in 8 bits: {list_keys(stored)} of `{component}`. Take 'lora', or store them in 16 bits."
        )


def check_shapes(model: nn.Module, component: str, layers: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if PEFT cannot tell the shape of LoKr's product from the weight of one of the layers."""
    bases = {path: base_layer(model, path) for path in layers}
    packed = [path for path, layer in bases.items() if layer.weight.shape != (layer.out_features, layer.in_features)]
    if packed:
        raise ValueError(
            f"`kind` 'lokr' needs weights of their own shape, but these of `{component}` are packed: "
            f"{list_keys(packed)}. Take 'lora', or store them in 8 bits."
        )


def _dtype(layer: Any) -> torch.dtype:
    dtype: torch.dtype = layer.weight.dtype
    return dtype


def base_layer(model: nn.Module, path: str) -> Any:
    """Return a layer without PEFT's wrapping."""
    layer: Any = model.get_submodule(path)
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


@torch.no_grad()
def base_norms(model: nn.Module, path: str) -> Tensor:
    """Return the lengths of the rows of a layer's weight in float32, DoRA's first magnitudes."""
    weight: Any = dequantize_module_weight(base_layer(model, path))
    weight = weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter else weight
    return weight.detach().float().norm(dim=1)
