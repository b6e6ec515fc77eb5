"""AttriCtrl's value encoder: from the strength of an attribute to text tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.modules import fill_module, read_tensors
from ...checkpoints.sizes import build_empty, check_dimensions


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["AttributeValueEncoder", "ModelMixin"]

VALUE_FACTOR = 1000
Source = str | Path | Mapping[str, torch.Tensor]


class _ValueEncoder(nn.Module):
    """The encoder of one attribute, with the names of the published files."""

    def __init__(self, embed_dim: int, output_dim: int, num_tokens: int) -> None:
        super().__init__()
        self.prefer_value_embedder = nn.Sequential(
            nn.Linear(embed_dim, output_dim), nn.SiLU(), nn.Linear(output_dim, output_dim)
        )
        self.positional_embedding = nn.Parameter(torch.randn(num_tokens, output_dim))

    def forward(self, sinusoids: torch.Tensor) -> torch.Tensor:
        """Map `(batch, embed_dim)` to `(batch, num_tokens, output_dim)`."""
        embedded = self.prefer_value_embedder(sinusoids)
        return embedded[:, None] + self.positional_embedding.to(embedded.dtype)


class AttributeValueEncoder(CheckedConfigMixin, ModelMixin, ConfigMixin):
    r"""The value encoders of AttriCtrl ([model](https://modelscope.cn/models/DiffSynth-Studio/AttriCtrl-FLUX.1-Dev)).

    They turn the strength of an attribute of the image, such as its brightness, into text tokens. Each published file
    holds one attribute; [`from_single_file`] joins any number of them into one model.

    Args:
        attributes (`Sequence[str]`, defaults to `("brightness",)`):
            Names of the attributes, each with an encoder of its own.
        num_tokens (`int`, defaults to 32):
            Tokens of a value.
        embed_dim (`int`, defaults to 256):
            Width of the sinusoids.
        output_dim (`int`, defaults to 4096):
            Width of a token, that of the text.

    Raises:
        ValueError: if there is no attribute, or two have the same name.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        attributes: Sequence[str] = ("brightness",),
        num_tokens: int = 32,
        embed_dim: int = 256,
        output_dim: int = 4096,
    ) -> None:
        super().__init__()
        if isinstance(attributes, str) or not attributes or len(set(attributes)) != len(attributes):
            raise ValueError(
                f"`attributes` is {attributes!r}; expected a list of different names, such as ['detail']."
            )
        self.encoders = nn.ModuleList(_ValueEncoder(embed_dim, output_dim, num_tokens) for _ in attributes)

    def forward(self, values: torch.Tensor, attribute: str) -> torch.Tensor:
        """Encode values of one attribute as text tokens.

        Args:
            values (`torch.Tensor` of shape `(batch_size,)`): In [0, 1], in float32 so that none is rounded.
            attribute (`str`): Name of the attribute.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_tokens, output_dim)`

        Raises:
            ValueError: if the model knows no such attribute.
        """
        known = list(self.config.attributes)
        if attribute not in known:
            raise ValueError(f"There is no attribute {attribute!r}; this encoder has {known}.")
        sinusoids = get_timestep_embedding(
            values * VALUE_FACTOR, self.config.embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.encoders[known.index(attribute)](sinusoids.to(self.dtype))

    @classmethod
    def from_single_file(
        cls,
        source: Source | Mapping[str, Source],
        attribute: str | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> AttributeValueEncoder:
        """Make an encoder from published files; the sizes follow from the shapes.

        Args:
            source (`str`, `Path` or `Mapping`):
                The file of one attribute (safetensors, or a pickle of tensors) or its state dict; or a mapping from
                names of attributes to such sources.
            attribute (`str`, *optional*):
                Name of the attribute of a single source; that of the file without its suffix by default.
            torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
            device (`str` or `torch.device`, *optional*): Device of the model; the tensors' by default.

        Returns:
            `AttributeValueEncoder` in eval mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a file holds something else, sizes differ, or the attribute has no name.
        """
        sources = _by_attribute(source, attribute)
        parts, sizes = {}, {}
        for name, one in sources.items():
            with naming(one):
                parts[name] = read_tensors(one, ("module.",))
                sizes[name] = _infer_sizes(name, parts[name])
        if len({tuple(size.items()) for size in sizes.values()}) > 1:
            raise ValueError(f"The encoders of the attributes differ in size, so they cannot be joined: {sizes}.")
        with naming(next(iter(sources.values()))):
            model = build_empty(cls, {"attributes": list(parts), **next(iter(sizes.values()))})
            weights = {
                f"encoders.{index}.{key}": tensor
                for index, part in enumerate(parts.values())
                for key, tensor in part.items()
            }
            return fill_module(model, weights, torch_dtype, device)


def _by_attribute(source: Any, attribute: str | None) -> Mapping[str, Any]:
    is_state_dict = isinstance(source, Mapping) and any(isinstance(value, torch.Tensor) for value in source.values())
    if isinstance(source, Mapping) and not is_state_dict:
        if attribute is not None or not source:
            raise ValueError("A mapping of files names its attributes itself: leave `attribute` out, and give a file.")
        return source
    if attribute is None and is_state_dict:
        raise ValueError(
            "A state dict does not say which attribute it is for. Give its name, `attribute='brightness'`."
        )
    return {attribute or Path(source).stem: source}


def _infer_sizes(attribute: str, weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    sized = ("prefer_value_embedder.0.weight", "positional_embedding")
    if any(key not in weights for key in sized):
        raise ValueError(
            f"This is not a value encoder of AttriCtrl for {attribute!r}: expected `prefer_value_embedder.*` and "
            f"`positional_embedding`, but it has {list_keys(weights)}."
        )
    first, positions = (weights[key] for key in sized)
    check_dimensions({key: weights[key].shape for key in sized}, dict.fromkeys(sized, 2))
    return {"num_tokens": positions.shape[0], "embed_dim": first.shape[1], "output_dim": first.shape[0]}
