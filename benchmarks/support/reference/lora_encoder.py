"""The reference's LoRA-Encoder, which hard-codes the released sizes, at any size and with the weights of ours."""

from torch import nn

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import FluxLoRAEncoder


flux_lora_encoder = import_reference("diffsynth.models.flux_lora_encoder")


def reference_lora_encoder(encoder: FluxLoRAEncoder) -> nn.Module:
    """The reference's `FluxLoRAEncoder`, assembled from its own parts."""
    config, width = encoder.config, encoder.config.embed_dim
    patterns = [
        {"name": name, "dim": sizes, "type": name.split(".", 2)[2]} for name, sizes in encoder.layer_shapes.items()
    ]
    module = flux_lora_encoder.FluxLoRAEncoder.__new__(flux_lora_encoder.FluxLoRAEncoder)
    nn.Module.__init__(module)
    module.num_embeds_per_lora, module.num_special_embeds = config.num_embeds_per_layer, config.num_special_embeds
    module.embedder = flux_lora_encoder.LoRAEmbedder(patterns, config.num_embeds_per_layer, width)
    module.encoders = nn.ModuleList(
        flux_lora_encoder.CLIPEncoderLayer(
            width, config.intermediate_size, config.num_attention_heads, width // config.num_attention_heads
        )
        for _ in range(config.num_encoder_layers)
    )
    module.special_embeds = nn.Parameter(encoder.special_embeds.clone())
    module.final_layer_norm, module.final_linear = nn.LayerNorm(width), nn.Linear(width, width)
    module.load_state_dict(encoder.state_dict())
    return module.eval().requires_grad_(False)
