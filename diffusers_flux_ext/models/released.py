"""The released models around FLUX.1-dev, by their sizes, on the default device: plans without weights use them."""

from typing import Any

from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)


_T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# google/siglip-so400m-patch14-384 and openai/clip-vit-large-patch14
_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_CLIP_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
# Qwen/Qwen2.5-VL-7B-Instruct
_QWEN_TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}


def clip_text() -> nn.Module:
    """Return the text model of CLIP large."""
    return CLIPTextModel(CLIPTextConfig(**_CLIP))


def t5_text() -> nn.Module:
    """Return the encoder of T5 v1.1 XXL."""
    return T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **_T5))


def clip_vision() -> nn.Module:
    """Return the vision model of CLIP large."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**_CLIP_VISION))


def siglip() -> nn.Module:
    """Return SigLIP so400m."""
    return SiglipVisionModel(SiglipVisionConfig(**_SIGLIP))


def qwen_vl(kind: Any = Qwen2_5_VLForConditionalGeneration) -> nn.Module:
    """Return Qwen2.5-VL 7B."""
    return kind(Qwen2_5_VLConfig(text_config=_QWEN_TEXT, vision_config=_QWEN_VISION, tie_word_embeddings=False))
