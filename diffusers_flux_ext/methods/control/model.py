"""`FluxControlNetModel` with inputs for a mask, and support for every published key layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import FluxControlNetModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ...checkpoints.config import RELEASED_AXES
from ...checkpoints.layouts import Shapes, TensorRecipe, TransformerLayout, detect_transformer_layout
from ...checkpoints.model_configs import CheckedConfigMixin
from ...checkpoints.single_file import SingleFileMixin
from .checkpoint import infer_controlnet_config, plan_controlnet_conversion


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxExtControlNetModel", "ModelMixin"]


class FluxExtControlNetModel(SingleFileMixin, CheckedConfigMixin, FluxControlNetModel):
    r"""A FLUX.1 ControlNet: [`~diffusers.FluxControlNetModel`] with a reader for every published key layout.

    It also has the input channels of alimama's inpainting ControlNets
    ([model card](https://huggingface.co/alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta)).

    [`from_single_file`] and [`from_state_dict`] recognise, by names and shapes, diffusers' layout (InstantX, Shakker
    Labs, alimama, the upscaler, InfuseNet), XLabs' single files and DiffSynth-Studio's layout, and infer the config.
    [`from_pretrained`] loads the published repositories, those of alimama included. Without extra channels, weights,
    config and outputs are those of `FluxControlNetModel`.

    Args:
        patch_size (`int`, defaults to 1):
            Patch size of a hint block's output; 2 for XLabs'.
        in_channels (`int`, defaults to 64):
            Channels of an input token.
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
            Whether the model takes an embedded guidance scale.
        axes_dims_rope (`tuple[int, int, int]`, defaults to `(16, 56, 56)`):
            Share of the head in the rotary embedding of each position axis.
        num_mode (`int`, *optional*):
            Number of modes of a union ControlNet.
        conditioning_embedding_channels (`int`, *optional*):
            Channels of the hint block's output, for ControlNets that take pixels (XLabs).
        extra_condition_channels (`int`, defaults to 0):
            Channels of a control token beyond `in_channels`; 4 for alimama's, which hold 1 - mask.
    """

    config: Any

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 64,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = RELEASED_AXES,
        num_mode: int | None = None,
        conditioning_embedding_channels: int | None = None,
        extra_condition_channels: int = 0,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
            num_mode=num_mode,
            conditioning_embedding_channels=conditioning_embedding_channels,
        )
        if extra_condition_channels:
            self.controlnet_x_embedder = nn.Linear(in_channels + extra_condition_channels, self.inner_dim)
            # As in every ControlNet, the image has no influence before training.
            nn.init.zeros_(self.controlnet_x_embedder.weight)
            nn.init.zeros_(self.controlnet_x_embedder.bias)

    @classmethod
    def plan_load(
        cls, shapes: Shapes, overrides: Mapping[str, Any]
    ) -> tuple[dict[str, TensorRecipe], dict[str, Any], TransformerLayout]:
        """See [`SingleFileMixin.plan_load`]."""
        layout = detect_transformer_layout(shapes)
        plan = plan_controlnet_conversion(shapes)
        config = infer_controlnet_config({key: recipe.shape for key, recipe in plan.items()}, layout, **overrides)
        return plan, config, layout
