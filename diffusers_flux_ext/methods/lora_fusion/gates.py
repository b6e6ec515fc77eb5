"""LoRA-Fusion: learned gates that weigh several LoRAs against each other, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.modules import fill_module, read_tensors
from ...checkpoints.sizes import build_empty, check_dimensions
from ..lora_encoder.model import lora_layers


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxLoRAFusion", "ModelMixin"]


def _key(layer: str) -> str:
    return layer.replace(".", "___")


class LoRAGate(nn.Module):
    """The gate of one layer ([AutoLoRA](https://huggingface.co/papers/2508.02107)).

    Each output of each LoRA is multiplied by a number between 0 and 1 that depends on the normalised outputs of the
    layer and of that LoRA; the results of all LoRAs are summed.

    Args:
        dim (`int`): Outputs of the layer, all parts of a fused one together.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight_base, self.weight_lora, self.weight_cross, self.bias = (
            nn.Parameter(torch.randn(dim)) for _ in range(4)
        )
        self.weight_out = nn.Parameter(torch.ones(dim))
        self.norm_base, self.norm_lora = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, base: torch.Tensor, loras: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute what the LoRAs add to a layer. Parameters are brought to the device and the dtype of `base`.

        Args:
            base (`torch.Tensor` of shape `(..., dim)`): Output of the layer without LoRAs.
            loras (`Sequence[torch.Tensor]` of shape `(..., dim)`): What each LoRA would add alone.

        Returns:
            `torch.Tensor` of shape `(..., dim)`
        """
        weight_base, weight_lora, weight_cross, bias, weight_out = (
            parameter.to(base)
            for parameter in (self.weight_base, self.weight_lora, self.weight_cross, self.bias, self.weight_out)
        )
        normed = _normed(base, self.norm_base)
        # Both are the same for all LoRAs.
        offset, slope = torch.addcmul(bias, normed, weight_base), torch.addcmul(weight_lora, normed, weight_cross)
        total: torch.Tensor | None = None
        for lora in loras:
            gate = torch.addcmul(offset, _normed(lora, self.norm_lora), slope).sigmoid_()
            total = gate * lora if total is None else torch.addcmul(total, gate, lora)
        return torch.zeros_like(base) if total is None else total * weight_out


def _normed(tensor: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return F.layer_norm(tensor, norm.normalized_shape, norm.weight.to(tensor), norm.bias.to(tensor), norm.eps)


class FluxLoRAFusion(CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The gates of LoRA-Fusion, one for each Linear of the transformer's blocks.

    See [AutoLoRA](https://huggingface.co/papers/2508.02107) and the
    [model](https://modelscope.cn/models/DiffSynth-Studio/LoRAFusion-preview-FLUX.1-dev). [`enable_lora_fusion`]
    applies them.

    Args:
        num_layers (`int`, defaults to 19): Double blocks of the transformer.
        num_single_layers (`int`, defaults to 38): Its single blocks.
        inner_dim (`int`, defaults to 3072): Its width.
    """

    _no_split_modules = ["LoRAGate"]

    config: Any

    @register_to_config
    def __init__(self, num_layers: int = 19, num_single_layers: int = 38, inner_dim: int = 3072) -> None:
        super().__init__()
        layers = lora_layers(num_layers, num_single_layers, inner_dim)
        self.model_dict = nn.ModuleDict({_key(name): LoRAGate(outputs) for name, (_, _, outputs) in layers.items()})

    @property
    def gates(self) -> dict[str, LoRAGate]:
        """The gates by layer, in DiffSynth-Studio's names, in which queries, keys and values are one layer."""
        return {key.replace("___", "."): gate for key, gate in self.model_dict.items()}  # type: ignore[misc]

    def forward(self, layer: str, base: torch.Tensor, loras: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute what LoRAs add to a layer.

        Args:
            layer (`str`): One of [`gates`], such as `"blocks.0.attn.a_to_qkv"`.
            base (`torch.Tensor` of shape `(..., outputs)`): Output of the layer without LoRAs.
            loras (`Sequence[torch.Tensor]` of shape `(..., outputs)`): What each LoRA would add alone.

        Returns:
            `torch.Tensor` of shape `(..., outputs)`

        Raises:
            ValueError: if there is no gate for the layer.
        """
        if _key(layer) not in self.model_dict:
            raise ValueError(f"There is no gate for {layer!r}; there are {list_keys(list(self.gates))}.")
        return self.model_dict[_key(layer)](base, loras)

    @classmethod
    def from_single_file(
        cls,
        source: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> FluxLoRAFusion:
        """Make the gates from the published file; the sizes follow from the shapes.

        Args:
            source (`str`, `Path` or `Mapping`): `model.safetensors`, a pickle of tensors, or a state dict.
            torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
            device (`str` or `torch.device`, *optional*): Device of the model; the tensors' by default.

        Returns:
            `FluxLoRAFusion` in eval mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds something else.
        """
        with naming(source):
            weights = read_tensors(source, ("module.",))
            model = build_empty(cls, _infer_config(weights))
            return fill_module(model, weights, torch_dtype, device)


def _infer_config(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    first = f"model_dict.{_key('single_blocks.0.norm.linear')}.bias"
    if first not in weights:
        raise ValueError(
            f"This is not a LoRA-Fusion for FLUX.1: it lacks `{first}`. The published file is `model.safetensors`; "
            f"this one has {list_keys(sorted(weights))}."
        )
    check_dimensions({first: weights[first].shape}, {first: 1})
    blocks = {tuple(key.split(".")[1].split("___")[:2]) for key in weights if key.startswith("model_dict.")}
    return {
        "num_layers": sum(kind == "blocks" for kind, *_ in blocks),
        "num_single_layers": sum(kind == "single_blocks" for kind, *_ in blocks),
        "inner_dim": weights[first].shape[0] // 3,
    }
