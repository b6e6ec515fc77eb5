"""Tiny components of `FluxPipeline` with seeded weights."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from .models import make_model
from .tokenizers import tiny_tokenizers


TRANSFORMER: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 40,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 12, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
T5: dict[str, Any] = {
    "d_model": 40,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def tiny_transformer(seed: int = 0, **overrides: Any) -> FluxTransformer2DModel:
    """Make a `FluxTransformer2DModel` of 2 + 3 blocks, width 32 and 64 channels, as FLUX.1-dev with guidance.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.
        overrides:
            Entries that replace those of the config, such as `guidance_embeds=False` or `in_channels=384,
            out_channels=64`.
    """
    return make_model(FluxTransformer2DModel, {**TRANSFORMER, **overrides}, seed)


def tiny_vae(seed: int = 0, **overrides: Any) -> AutoencoderKL:
    """Make an `AutoencoderKL` with FLUX.1's four levels and 16 latent channels; `overrides` replace config entries."""
    return make_model(AutoencoderKL, {**VAE, **overrides}, seed)


def tiny_text_encoder(seed: int = 0) -> CLIPTextModel:
    """Make a `CLIPTextModel` of width 24 for the tiny CLIP tokenizer."""
    tokenizer, _ = tiny_tokenizers()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    return make_model(_clip, {"vocab_size": len(tokenizer), **ids, **CLIP}, seed)


def _clip(**config: Any) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**config))


def tiny_text_encoder_2(seed: int = 0) -> T5EncoderModel:
    """Make a `T5EncoderModel` of width 40 for the tiny T5 tokenizer."""
    _, tokenizer = tiny_tokenizers()
    model = make_model(_t5, {"vocab_size": len(tokenizer), **T5}, seed)
    with torch.no_grad():
        model.encoder.embed_tokens.weight.copy_(model.shared.weight)
    return model


def _t5(**config: Any) -> T5EncoderModel:
    return T5EncoderModel(T5Config(**config))


def tiny_components(seed: int = 0, **transformer_overrides: Any) -> dict[str, Any]:
    """Make all components that `FluxPipeline` requires, in float32 on the CPU.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights of all models.
        transformer_overrides:
            As in [`tiny_transformer`].

    Returns:
        `dict[str, Any]`: The constructor's arguments. The tokenizers are shared by all calls.
    """
    tokenizer, tokenizer_2 = tiny_tokenizers()
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": tiny_vae(seed),
        "text_encoder": tiny_text_encoder(seed),
        "tokenizer": tokenizer,
        "text_encoder_2": tiny_text_encoder_2(seed),
        "tokenizer_2": tokenizer_2,
        "transformer": tiny_transformer(seed, **transformer_overrides),
    }
