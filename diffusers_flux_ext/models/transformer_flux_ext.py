"""`FluxTransformer2DModel` that reads every published key layout, at any width and depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from ..attention.processor import set_regional_processors
from ..caches.tea_cache import TeaCacheConfig, apply_tea_cache, remove_tea_cache
from ..checkpoints.all_in_one import transformer_keys
from ..checkpoints.config import RELEASED_AXES, infer_transformer_config
from ..checkpoints.layouts import (
    CONNECTOR,
    Shapes,
    TensorRecipe,
    TransformerLayout,
    detect_transformer_layout,
    has_connector,
    plan_transformer_conversion,
)
from ..checkpoints.model_configs import CheckedConfigMixin
from ..checkpoints.packed_weights import QUANTO, check_not_nunchaku, check_not_packed, packings
from ..checkpoints.single_file import SingleFileMixin


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["FluxExtTransformer2DModel", "ModelMixin"]


class FluxExtTransformer2DModel(SingleFileMixin, CheckedConfigMixin, FluxTransformer2DModel):
    r"""The FLUX.1 transformer: [`~diffusers.FluxTransformer2DModel`] with a reader for every published key layout.

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

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] | None = None,
        skip_modules_classes: tuple[type[torch.nn.Module], ...] | None = None,
        non_blocking: bool = False,
    ) -> None:
        """See [`~diffusers.ModelMixin.enable_layerwise_casting`]; refused for quantised weights, which it destroys.

        Args:
            storage_dtype (`torch.dtype`, *optional*, defaults to `torch.float8_e4m3fn`): Data type of the weights.
            compute_dtype, skip_modules_pattern, skip_modules_classes, non_blocking: As there.

        Raises:
            ValueError: If the model is quantised.
        """
        check_not_packed(self, f"be stored in {storage_dtype} as well", "Leave the casting out.")
        super().enable_layerwise_casting(
            storage_dtype, compute_dtype, skip_modules_pattern, skip_modules_classes, non_blocking
        )

    def fuse_qkv_projections(self) -> None:
        """See [`~diffusers.FluxTransformer2DModel.fuse_qkv_projections`]; refused where weights cannot be joined.

        Raises:
            ValueError: If the model is quantised by anything but optimum-quanto.
        """
        if set(packings(self)) - {QUANTO}:
            check_not_packed(self, "have its projections fused", "It runs with separate ones.")
        super().fuse_qkv_projections()

    def enable_cache(self, config: Any) -> None:
        """Run with a cache: any of diffusers' configs, or a [`TeaCacheConfig`]."""
        if isinstance(config, TeaCacheConfig):
            apply_tea_cache(self, config)
        else:
            super().enable_cache(config)

    def disable_cache(self) -> None:
        """Run without a cache again."""
        if isinstance(self._cache_config, TeaCacheConfig):
            remove_tea_cache(self)
        else:
            super().disable_cache()

    @classmethod
    def own_keys(cls, keys: Iterable[str]) -> Mapping[str, str]:
        """See [`SingleFileMixin.own_keys`]; files of ComfyUI hold text encoders and the VAE as well."""
        keys = list(keys)
        check_not_nunchaku(keys)
        return transformer_keys(keys)

    @classmethod
    def plan_load(
        cls, shapes: Shapes, overrides: Mapping[str, Any]
    ) -> tuple[dict[str, TensorRecipe], dict[str, Any], TransformerLayout]:
        """See [`SingleFileMixin.plan_load`]; a file of Step1X-Edit has a connector beside the transformer."""
        if has_connector(shapes):
            shapes = {key: shape for key, shape in shapes.items() if not key.startswith(CONNECTOR)}
        layout = detect_transformer_layout(shapes)
        plan = plan_transformer_conversion(shapes)
        config = infer_transformer_config({key: recipe.shape for key, recipe in plan.items()}, layout, **overrides)
        return plan, config, layout
