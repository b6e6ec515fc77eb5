"""The tiny components, with random weights."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from .settings import Settings


_ZERO_INITIALIZED = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")


def build_vae() -> AutoencoderKL:
    """Return a VAE of 0.26 M parameters: 16 latent channels, 8 times smaller."""
    channels = (8, 16, 32, 32)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return a CLIP text model, 96 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        projection_dim=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


def build_text_encoder_2(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Return a T5 encoder, 128 wide."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def build_transformer() -> FluxTransformer2DModel:
    """Return a FLUX.1 transformer of 2.4 M parameters: 2 double and 4 single blocks, 128 wide."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=96,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            _initialize(name, module)
    return transformer


def _initialize(name: str, linear: torch.nn.Linear) -> None:
    """Zero modulation and output, as usual for diffusion transformers: every block starts as the identity."""
    if name == "proj_out" or name.endswith(_ZERO_INITIALIZED):
        torch.nn.init.zeros_(linear.weight)
    else:
        torch.nn.init.xavier_uniform_(linear.weight)
    torch.nn.init.zeros_(linear.bias)


def load_tokenizers(settings: Settings) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Return the run's tokenizers."""
    folder = settings.tokenizers
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), T5Tokenizer.from_pretrained(folder / "tokenizer_2")


def load_vae(settings: Settings) -> AutoencoderKL:
    """Return the run's VAE, frozen."""
    return AutoencoderKL.from_pretrained(settings.vae).requires_grad_(False).eval().to(settings.device)


def assemble(
    settings: Settings,
    text_encoder: CLIPTextModel,
    text_encoder_2: T5EncoderModel,
    transformer: FluxTransformer2DModel,
) -> FluxPipeline:
    """Return an ordinary pipeline of all components, with FLUX.1-dev's scheduler."""
    tokenizer, tokenizer_2 = load_tokenizers(settings)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    return FluxPipeline(
        scheduler, load_vae(settings), text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer
    )
