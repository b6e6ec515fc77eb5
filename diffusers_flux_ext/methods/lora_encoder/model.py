"""LoRA-Encoder: from the matrices of a LoRA to text tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.modules import fill_module, read_tensors
from ...checkpoints.sizes import build_empty, check_dimensions, count_blocks


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxLoRAEncoder", "ModelMixin"]

RELEASED_HEADS = 32
# Inputs and outputs of the layers that are read, in widths of the transformer; the names are DiffSynth-Studio's.
_DOUBLE = {
    "attn.{}_to_qkv": (1, 3),
    "attn.{}_to_out": (1, 1),
    "ff_{}.0": (1, 4),
    "ff_{}.2": (4, 1),
    "norm1_{}.linear": (1, 6),
}
_SINGLE = {"to_qkv_mlp": (1, 7), "proj_out": (5, 1), "norm.linear": (1, 3)}
LoRAPairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def _key(layer: str) -> str:
    return layer.replace(".", "___")


class _LayerReader(nn.Module):
    """Learned inputs, sent through the update of one layer: `(1, length, out_features)`."""

    def __init__(self, length: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.randn(1, length, in_features))
        self.layer_norm = nn.LayerNorm(out_features)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Send the learned inputs through `pair`, `(down, up)`; `None` is an update of zero."""
        if pair is None:
            return self.layer_norm(self.x.new_zeros(*self.x.shape[:2], *self.layer_norm.normalized_shape))
        down, up = (factor.to(self.x.device, self.x.dtype) for factor in pair)
        return self.layer_norm(self.x @ down.T @ up.T)


class _Embedder(nn.Module):
    """Tokens of all layers `(1, layers * length, width)`; layers of one kind share a projection."""

    def __init__(self, layers: Mapping[str, tuple[str, int, int]], length: int, width: int) -> None:
        super().__init__()
        self.layers = layers
        self.model_dict = nn.ModuleDict(
            {_key(name): _LayerReader(length, *layer[1:]) for name, layer in layers.items()}
        )
        self.proj_dict = nn.ModuleDict({_key(kind): nn.Linear(out, width) for kind, _, out in layers.values()})

    def forward(self, lora: LoRAPairs) -> torch.Tensor:
        tokens = [
            self.proj_dict[_key(kind)](self.model_dict[_key(name)](lora.get(name)))
            for name, (kind, _, _) in self.layers.items()
        ]
        return torch.cat(tokens, dim=1)


class _Attention(nn.Module):
    """Attention of the first `queries` tokens to all of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: torch.Tensor, queries: int) -> torch.Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(tokens[:, :queries]), self.to_k(tokens), self.to_v(tokens))
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class _EncoderLayer(nn.Module):
    """A layer like CLIP's; only the first `queries` tokens are returned."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor, queries: int) -> torch.Tensor:
        tokens = tokens[:, :queries] + self.attn(self.layer_norm1(tokens), queries)
        hidden = self.fc1(self.layer_norm2(tokens))
        return tokens + self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class FluxLoRAEncoder(CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The LoRA-Encoder ([model](https://modelscope.cn/models/DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev)).

    It reads the matrices of a LoRA and expresses in text tokens what the LoRA draws. Each layer's learned inputs go
    through its `down` and `up` in turn, so that no update is ever formed as a whole matrix. Only the special tokens
    leave the encoder, so its last layer computes nothing else.

    Args:
        num_layers (`int`, defaults to 19): Double blocks of the transformer that the LoRAs are for.
        num_single_layers (`int`, defaults to 38): Its single blocks.
        inner_dim (`int`, defaults to 3072): Its width.
        embed_dim (`int`, defaults to 4096): Width of a token, that of the text.
        intermediate_size (`int`, defaults to 8192): Width of the feed-forward layers.
        num_encoder_layers (`int`, defaults to 1): Layers of the encoder.
        num_attention_heads (`int`, defaults to 32): Heads of its attention.
        num_embeds_per_layer (`int`, defaults to 16): Learned inputs of each layer of a LoRA.
        num_special_embeds (`int`, defaults to 1): Output tokens of a LoRA.
    """

    _no_split_modules = ["_LayerReader", "_EncoderLayer"]
    _skip_layerwise_casting_patterns = ["norm"]

    config: Any

    @register_to_config
    def __init__(
        self,
        num_layers: int = 19,
        num_single_layers: int = 38,
        inner_dim: int = 3072,
        embed_dim: int = 4096,
        intermediate_size: int = 8192,
        num_encoder_layers: int = 1,
        num_attention_heads: int = RELEASED_HEADS,
        num_embeds_per_layer: int = 16,
        num_special_embeds: int = 1,
    ) -> None:
        super().__init__()
        layers = lora_layers(num_layers, num_single_layers, inner_dim)
        self.embedder = _Embedder(layers, num_embeds_per_layer, embed_dim)
        self.encoders = nn.ModuleList(
            _EncoderLayer(embed_dim, intermediate_size, num_attention_heads) for _ in range(num_encoder_layers)
        )
        self.special_embeds = nn.Parameter(torch.randn(1, num_special_embeds, embed_dim))
        self.final_layer_norm = nn.LayerNorm(embed_dim)
        self.final_linear = nn.Linear(embed_dim, embed_dim)

    def forward(self, lora: LoRAPairs) -> torch.Tensor:
        """Read one LoRA.

        Args:
            lora (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
                `(down, up)` of shapes `(rank, in_features)` and `(out_features, rank)` by layer, with the scale in
                them, on any device and of any dtype; layers as in [`layer_shapes`]. A layer that is left out counts
                as an update of zero.

        Returns:
            `torch.Tensor` of shape `(1, num_special_embeds, embed_dim)`

        Raises:
            ValueError: if a layer is unknown, a shape is wrong, or there is no layer.
        """
        self.check_lora(lora)
        tokens = self.embedder(lora)
        special = self.special_embeds
        tokens = torch.cat([special.to(tokens.dtype), tokens], dim=1)
        last = len(self.encoders) - 1
        for index, encoder in enumerate(self.encoders):
            tokens = encoder(tokens, special.shape[1] if index == last else tokens.shape[1])
        return self.final_linear(self.final_layer_norm(tokens[:, : special.shape[1]]))

    @property
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """`(in_features, out_features)` of the layers that are read, by DiffSynth-Studio's names."""
        config = self.config
        layers = lora_layers(config.num_layers, config.num_single_layers, config.inner_dim)
        return {name: (inputs, outputs) for name, (_, inputs, outputs) in layers.items()}

    def check_lora(self, lora: LoRAPairs) -> None:
        """Raise a `ValueError` unless every layer is one that is read, and its matrices have its sizes."""
        shapes = self.layer_shapes
        unknown = [name for name in lora if name not in shapes]
        if unknown or not lora:
            raise ValueError(
                f"The LoRA-Encoder reads {len(shapes)} layers of the transformer's blocks, but this LoRA has "
                f"{list_keys(unknown) if unknown else 'none of them'}."
            )
        for name, (down, up) in lora.items():
            if (down.shape[1], up.shape[0]) != shapes[name] or down.shape[0] != up.shape[1]:
                raise ValueError(
                    f"The matrices of `{name}` have the shapes {tuple(down.shape)} and {tuple(up.shape)}; expected "
                    f"(rank, {shapes[name][0]}) and ({shapes[name][1]}, rank). Is the LoRA for another model?"
                )

    @classmethod
    def from_single_file(
        cls,
        source: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        num_attention_heads: int = RELEASED_HEADS,
    ) -> FluxLoRAEncoder:
        """Make an encoder from the published file; the sizes follow from the shapes.

        Args:
            source (`str`, `Path` or `Mapping`): `model.safetensors`, a pickle of tensors, or a state dict.
            torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
            device (`str` or `torch.device`, *optional*): Device of the model; the tensors' by default.
            num_attention_heads (`int`, defaults to 32): Number of heads, which cannot be read from the weights.

        Returns:
            `FluxLoRAEncoder` in eval mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds something else.
        """
        with naming(source):
            weights = read_tensors(source, ("module.",))
            model = build_empty(cls, {**_infer_config(weights), "num_attention_heads": num_attention_heads})
            return fill_module(model, weights, torch_dtype, device)


def lora_layers(num_layers: int, num_single_layers: int, inner_dim: int) -> dict[str, tuple[str, int, int]]:
    """Return kind, inputs and outputs of each layer that is read, in the encoder's order."""
    double = {kind.format(stream): sizes for stream in "ab" for kind, sizes in _DOUBLE.items()}
    groups: Sequence[tuple[str, int, Mapping[str, tuple[int, int]]]] = (
        ("blocks", num_layers, double),
        ("single_blocks", num_single_layers, _SINGLE),
    )
    return {
        f"{blocks}.{index}.{kind}": (kind, inputs * inner_dim, outputs * inner_dim)
        for blocks, number, kinds in groups
        for index in range(number)
        for kind, (inputs, outputs) in kinds.items()
    }


def _infer_config(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    first = f"embedder.model_dict.{_key('single_blocks.0.norm.linear')}.x"
    sized = {first: 3, "encoders.0.fc1.weight": 2, "special_embeds": 3}
    missing = [key for key in sized if key not in weights]
    if missing:
        raise ValueError(
            f"This is not a LoRA-Encoder for FLUX.1: it lacks {missing}. The published file is `model.safetensors`; "
            f"it has {list_keys(sorted(weights))}."
        )
    check_dimensions({key: weights[key].shape for key in sized}, sized)
    layers = {tuple(key.split(".")[2].split("___")[:2]) for key in weights if key.startswith("embedder.model_dict.")}
    return {
        "num_layers": sum(kind == "blocks" for kind, *_ in layers),
        "num_single_layers": sum(kind == "single_blocks" for kind, *_ in layers),
        "inner_dim": weights[first].shape[2],
        "embed_dim": weights["special_embeds"].shape[2],
        "intermediate_size": weights["encoders.0.fc1.weight"].shape[0],
        "num_encoder_layers": count_blocks(weights, "encoders"),
        "num_embeds_per_layer": weights[first].shape[1],
        "num_special_embeds": weights["special_embeds"].shape[1],
    }
