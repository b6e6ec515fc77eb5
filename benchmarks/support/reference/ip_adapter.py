"""The reference's IP-Adapter and SigLIP with the weights of ours."""

import torch
from torch import nn
from transformers import SiglipVisionModel

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import FluxIPAdapter


flux_ipadapter = import_reference("diffsynth.models.flux_ipadapter")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_ipadapter")


def reference_ip_adapter(adapter: FluxIPAdapter) -> nn.Module:
    """The reference's `FluxIpAdapter`, which hard-codes SigLIP's width, assembled at the sizes of `adapter`."""
    config = adapter.config
    model = flux_ipadapter.FluxIpAdapter.__new__(flux_ipadapter.FluxIpAdapter)
    nn.Module.__init__(model)
    heads = (config.num_attention_heads, config.attention_head_dim, config.cross_attention_dim)
    model.ipadapter_modules = nn.ModuleList(flux_ipadapter.IpAdapterModule(*heads) for _ in range(config.num_blocks))
    model.image_proj = flux_ipadapter.MLPProjModel(
        config.cross_attention_dim, config.image_embed_dim, config.num_tokens
    )
    model.set_adapter()
    model.load_state_dict(converters.FluxIpAdapterStateDictConverter(dict(adapter.state_dict())))
    return model.eval().requires_grad_(False)


def reference_siglip(encoder: SiglipVisionModel) -> nn.Module:
    """The reference's SigLIP class around the same config and weights."""
    cls = flux_ipadapter.SiglipVisionModelSO400M
    model = cls.__new__(cls)
    SiglipVisionModel.__init__(model, encoder.config)
    model.load_state_dict(encoder.state_dict())
    return model.eval().requires_grad_(False)


def reference_image_embeds(pipe: nn.Module, images: list) -> torch.Tensor:
    """What the reference's IP-Adapter unit hands to the adapter for some pictures."""
    seen = []
    pipe.ipadapter.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unit = import_reference("diffsynth.pipelines.flux_image").FluxImageUnit_IPAdapter()
    unit.process(pipe, {"ipadapter_images": images}, {}, {})
    return seen[0]
