"""`FluxTransformer2DModel` that reads every published key layout, at any width and depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from safetensors import SafetensorError, safe_open

from ..loaders.checkpoint_formats import Shapes, detect_transformer_layout, plan_transformer_conversion
from ..loaders.transformer_config import RELEASED_AXES, check_fit, infer_transformer_config
from .attention_processor_flux import set_regional_processors


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxExtTransformer2DModel", "ModelMixin"]


class FluxExtTransformer2DModel(FluxTransformer2DModel):
    r"""
    The FLUX.1 transformer: [`~diffusers.FluxTransformer2DModel`] with a reader for every published key layout.

    [`from_state_dict`] and [`from_single_file`] read the layouts of diffusers, Black Forest Labs (with or without the
    prefix `model.diffusion_model.`) and DiffSynth-Studio, and infer the config from the shapes. The attention layers
    start with [`FluxRegionalAttnProcessor`], which equals the stock processor when no attention plan is given.
    Weights, config and folders are those of `FluxTransformer2DModel`; either class loads the other's.

    Args:
        patch_size (`int`, defaults to 1):
            Side of a patch in input cells.
        in_channels (`int`, defaults to 64):
            Channels of an input token.
        out_channels (`int`, *optional*):
            Channels of an output token; `in_channels` by default.
        num_layers (`int`, defaults to 19):
            Number of double-stream blocks.
        num_single_layers (`int`, defaults to 38):
            Number of single-stream blocks.
        attention_head_dim (`int`, defaults to 128):
            Width of an attention head.
        num_attention_heads (`int`, defaults to 24):
            Number of attention heads.
        joint_attention_dim (`int`, defaults to 4096):
            Width of `encoder_hidden_states`.
        pooled_projection_dim (`int`, defaults to 768):
            Width of `pooled_projections`.
        guidance_embeds (`bool`, defaults to `False`):
            Whether the model takes an embedded guidance scale, as FLUX.1-dev does.
        axes_dims_rope (`tuple[int, int, int]`, defaults to `(16, 56, 56)`):
            Share of the head in the rotary embedding of each position axis; they sum up to `attention_head_dim`.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        out_channels: int | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = RELEASED_AXES,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
        set_regional_processors(self)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> FluxExtTransformer2DModel:
        """
        Makes a model from weights in any layout; the config follows from their shapes.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`):
                Weights in the diffusers, Black Forest Labs or DiffSynth-Studio layout. They are copied: neither the
                mapping nor its tensors are changed, now or later.
            torch_dtype (`torch.dtype`, *optional*):
                Dtype of the model; that of each tensor by default.
            device (`str` or `torch.device`, *optional*):
                Device of the model; that of each tensor by default.
            overrides:
                Arguments of the constructor that replace inferred ones. `axes_dims_rope` leaves no trace in the
                weights and is needed unless the heads are 128 wide.

        Returns:
            `FluxExtTransformer2DModel` in eval mode.

        Raises:
            ValueError: If keys are unknown or missing; if shapes do not fit together; if `axes_dims_rope` is needed.
            TypeError: If an override is no argument of the constructor.
        """
        shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
        return cls._from_tensors(shapes, state_dict.__getitem__, overrides, torch_dtype, device)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> FluxExtTransformer2DModel:
        """
        Makes a model from one local safetensors file in any layout.

        Only the header is read to plan the load. Tensors are then copied one at a time out of the mapped file, whose
        pages the system can drop again, so that the load needs the memory of the model once.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`):
                Path of a safetensors file, whatever its suffix (`.safetensors`, `.sft`). A mapping goes to
                [`from_state_dict`].
            torch_dtype (`torch.dtype`, *optional*):
                Dtype of the model; that of each tensor of the file by default.
            device (`str` or `torch.device`, *optional*):
                Device of the model; CPU by default.
            dtype (`torch.dtype`, *optional*):
                The newer name of `torch_dtype`.
            overrides:
                See [`from_state_dict`].

        Returns:
            `FluxExtTransformer2DModel` in eval mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no safetensors file; if keys are unknown or missing; if shapes do not fit
                together; if `axes_dims_rope` is needed.
            TypeError: If an override is no argument of the constructor.
        """
        source = pretrained_model_link_or_path_or_dict
        arguments: dict[str, Any] = {"torch_dtype": dtype or torch_dtype, "device": device, **overrides}
        if isinstance(source, Mapping):
            return cls.from_state_dict(source, **arguments)
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no file `{source}`. Pass a local path; files on the Hub are fetched by "
                "`huggingface_hub.hf_hub_download`, which returns one."
            )
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise ValueError(
                f"`{path}` is no safetensors file ({error}). Pickle and GGUF files are not read here."
            ) from error
        with file as reader:
            shapes = {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}
            return cls._from_tensors(
                shapes, reader.get_tensor, overrides, arguments["torch_dtype"], arguments["device"]
            )

    @classmethod
    def _from_tensors(
        cls,
        shapes: Shapes,
        read: Callable[[str], torch.Tensor],
        overrides: Mapping[str, Any],
        dtype: torch.dtype | None,
        device: str | torch.device | None,
    ) -> FluxExtTransformer2DModel:
        layout = detect_transformer_layout(shapes)
        plan = plan_transformer_conversion(shapes)
        config = infer_transformer_config({key: recipe.shape for key, recipe in plan.items()}, layout, **overrides)
        with torch.device("meta"):
            model = cls(**config)
        check_fit(model, plan, layout)
        weights = {
            # A copy, because a tensor may be a view of the source or of a mapped file.
            key: recipe.build(read).to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
            for key, recipe in plan.items()
        }
        model.load_state_dict(weights, assign=True)
        return model.eval()
