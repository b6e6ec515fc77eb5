"""Tiny components of `FluxPipeline` with seeded weights. The reference's modules are derived from them."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tests.parity.reference.tokenizers import tiny_tokenizers
from tests.parity.reference.weights import randomise


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
    """A `FluxTransformer2DModel` of 2 + 3 blocks and width 32; `overrides` replace entries of its config."""
    return randomise(FluxTransformer2DModel(**{**TRANSFORMER, **overrides}), seed)


def tiny_vae(seed: int = 0, **overrides: Any) -> AutoencoderKL:
    """An `AutoencoderKL` with FLUX' four levels and at most 16 channels."""
    return randomise(AutoencoderKL(**{**VAE, **overrides}), seed)


def tiny_text_encoder(seed: int = 0) -> CLIPTextModel:
    """A `CLIPTextModel` of width 24 for the tiny CLIP tokenizer."""
    tokenizer, _ = tiny_tokenizers()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    return randomise(CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **ids, **CLIP)), seed)


def tiny_text_encoder_2(seed: int = 0) -> T5EncoderModel:
    """A `T5EncoderModel` of width 40 for the tiny T5 tokenizer."""
    _, tokenizer = tiny_tokenizers()
    model = randomise(T5EncoderModel(T5Config(vocab_size=len(tokenizer), **T5)), seed)
    with torch.no_grad():
        model.encoder.embed_tokens.weight.copy_(model.shared.weight)
    return model


def tiny_components(seed: int = 0, **transformer_overrides: Any) -> dict[str, Any]:
    """All arguments of `FluxPipeline` but the optional ones, in float32 on CPU."""
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
