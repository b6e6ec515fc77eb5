"""The reference's DiT at any size: it hard-codes the released one, so it is assembled from its own block classes."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from benchmarks.support.reference.boot import import_reference


flux_dit = import_reference("diffsynth.models.flux_dit")
general_modules = import_reference("diffsynth.models.general_modules")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_dit")
flux_image = import_reference("diffsynth.pipelines.flux_image")


def add_trunk(module: nn.Module, config: Any, dim: int) -> None:
    """What the reference's DiT and its ControlNet have in common."""
    heads = config.num_attention_heads
    module.pos_embedder = flux_dit.RoPEEmbedding(dim, 10000, list(config.axes_dims_rope))
    module.time_embedder = general_modules.TimestepEmbeddings(256, dim)
    module.guidance_embedder = general_modules.TimestepEmbeddings(256, dim) if config.guidance_embeds else None
    module.pooled_text_embedder = nn.Sequential(
        nn.Linear(config.pooled_projection_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
    )
    module.context_embedder = nn.Linear(config.joint_attention_dim, dim)
    module.blocks = nn.ModuleList(flux_dit.FluxJointTransformerBlock(dim, heads) for _ in range(config.num_layers))
    module.single_blocks = nn.ModuleList(
        flux_dit.FluxSingleTransformerBlock(dim, heads) for _ in range(config.num_single_layers)
    )


def _assemble(transformer: FluxTransformer2DModel) -> nn.Module:
    config, dim = transformer.config, transformer.inner_dim
    dit = flux_dit.FluxDiT.__new__(flux_dit.FluxDiT)
    nn.Module.__init__(dit)
    add_trunk(dit, config, dim)
    dit.x_embedder = nn.Linear(config.in_channels, dim)
    dit.final_norm_out = flux_dit.AdaLayerNormContinuous(dim)
    dit.final_proj_out = nn.Linear(dim, transformer.out_channels)
    dit.input_dim = config.in_channels
    return dit


def reference_dit_weights(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's weights under the reference's names, converted by the reference's own converter."""
    weights = dict(transformer.state_dict())
    if transformer.inner_dim != 3072:
        # The converter swaps shift and scale at row 3072, which leaves other widths as they are.
        for name in ("norm_out.linear.weight", "norm_out.linear.bias"):
            weights[name] = weights[name].roll(transformer.inner_dim, dims=0)
    return converters.FluxDiTStateDictConverterFromDiffusers(weights)


def reference_dit(transformer: FluxTransformer2DModel, share: bool = False) -> nn.Module:
    """The reference's `FluxDiT` with the sizes and the weights of `transformer`; `share` copies only what it must."""
    with torch.device("meta" if share else "cpu"):
        dit = _assemble(transformer)
    dit.load_state_dict(reference_dit_weights(transformer), assign=share)
    return dit.eval().requires_grad_(False)


def reference_velocity(dit: nn.Module, gradients: bool = False, /, **inputs: torch.Tensor | None) -> torch.Tensor:
    """Runs the reference's model function: `latents` (B, C, H, W), `timestep` in [0, 1000], `guidance` unscaled."""
    with torch.set_grad_enabled(gradients):
        return flux_image.model_fn_flux_image(dit=dit, **inputs)


def empty_reference_dit(**config: Any) -> nn.Module:
    """The reference's `FluxDiT` for diffusers' config, on the meta device."""
    with torch.device("meta"):
        return _assemble(FluxTransformer2DModel(**config))


def disk_reference_dit(paths: list[str], dtype: torch.dtype, **config: Any) -> nn.Module:
    """The reference's `FluxDiT` in its disk mode: every layer is read from `paths` whenever it computes."""
    loader = import_reference("diffsynth.core.loader.model")
    layers = import_reference("diffsynth.core.vram.layers")
    stages = ("offload", "onload", "preparing")
    on_disk = {f"{stage}_{what}": "disk" for stage in stages for what in ("dtype", "device")}
    dit = loader.load_model(
        empty_reference_dit,
        paths,
        config=config,
        module_map={nn.Linear: layers.AutoWrappedLinear, flux_dit.RMSNorm: layers.AutoWrappedModule},
        vram_config={**on_disk, "computation_dtype": dtype, "computation_device": "cpu"},
    )
    return dit.eval()
