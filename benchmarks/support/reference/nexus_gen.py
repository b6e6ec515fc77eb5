"""The reference's adapter and embedding merger of Nexus-Gen with the weights of ours."""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import NexusGenAdapter, NexusGenEditingMerger


projectors = import_reference("diffsynth.models.nexus_gen_projector")


class _Config:
    """What the reference's classes read of transformers' config, under the names of transformers 4."""

    def __init__(self, config: Any) -> None:
        self.hidden_size, self.intermediate_size = config.hidden_size, config.intermediate_size
        self.num_attention_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.rms_norm_eps, self.hidden_act, self.attention_dropout = config.rms_norm_eps, "silu", 0.0
        self.max_position_embeddings, self.rope_theta = 4096, config.rope_theta
        self.rope_scaling = {"rope_type": "default", "mrope_section": list(config.mrope_section)}
        self.rope_parameters = {**self.rope_scaling, "rope_theta": config.rope_theta}
        self.vision_config = type("Vision", (), {"spatial_merge_size": 2, "tokens_per_second": 2})()


def _empty(module_class: Any) -> Any:
    module = module_class.__new__(module_class)
    nn.Module.__init__(module)
    return module


def _rotary_embedding(config: _Config) -> Any:
    # Its constructor asks transformers for a function that is gone; today's stands in for it.
    module = _empty(projectors.Qwen2_5_VLRotaryEmbedding)
    module.inv_freq, module.attention_scaling = Qwen2_5_VLRotaryEmbedding.compute_default_rope_parameters(config)
    module.rope_type = "default"
    return module


def reference_nexus_adapter(adapter: NexusGenAdapter) -> Any:
    """The reference's `NexusGenAdapter`."""
    module = projectors.NexusGenAdapter(adapter.config.input_dim, adapter.config.output_dim)
    module.load_state_dict(adapter.state_dict())
    return module.eval().requires_grad_(False)


def reference_nexus_merger(merger: NexusGenEditingMerger) -> Any:
    """The reference's `NexusGenImageEmbeddingMerger`, whose sizes are hard-coded, from its own blocks."""
    config, module = _Config(merger.config), _empty(projectors.NexusGenImageEmbeddingMerger)
    norm, wide = projectors.Qwen2RMSNorm, merger.config.output_dim * merger.config.expand_ratio
    module.config, module.num_layers = config, merger.config.num_layers
    module.layers = nn.ModuleList(
        projectors.Qwen2_5_VLDecoderLayer(config, index) for index in range(merger.config.num_layers)
    )
    module.projector = nn.Sequential(
        norm(config.hidden_size),
        nn.Linear(config.hidden_size, wide),
        norm(wide),
        ACT2FN["silu"],
        nn.Linear(wide, merger.config.output_dim),
        norm(merger.config.output_dim),
    )
    module.base_grid = torch.tensor([[1, merger.config.base_grid, merger.config.base_grid]])
    module.rotary_emb = _rotary_embedding(config)
    module.load_state_dict(merger.state_dict())
    return module.eval().requires_grad_(False)
