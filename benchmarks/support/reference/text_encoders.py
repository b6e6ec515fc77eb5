"""The reference's CLIP and T5 text encoders at any size."""

from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from benchmarks.support.reference.boot import import_reference


flux_text_encoder_clip = import_reference("diffsynth.models.flux_text_encoder_clip")
flux_text_encoder_t5 = import_reference("diffsynth.models.flux_text_encoder_t5")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_text_encoder_clip")


def reference_clip(text_encoder: CLIPTextModel) -> nn.Module:
    """The reference's `FluxTextEncoderClip` with the sizes and the weights of `text_encoder`."""
    config = text_encoder.config
    clip = flux_text_encoder_clip.FluxTextEncoderClip(
        embed_dim=config.hidden_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        num_encoder_layers=0,
        encoder_intermediate_size=config.intermediate_size,
    )
    head_dim = config.hidden_size // config.num_attention_heads
    clip.encoders = nn.ModuleList(
        flux_text_encoder_clip.CLIPEncoderLayer(
            config.hidden_size, config.intermediate_size, num_heads=config.num_attention_heads, head_dim=head_dim
        )
        for _ in range(config.num_hidden_layers)
    )
    # transformers 5 dropped the prefix that the released file and the converter have.
    weights = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in text_encoder.state_dict().items()}
    clip.load_state_dict(converters.FluxTextEncoderClipStateDictConverter(weights))
    return clip.eval().requires_grad_(False)


def reference_t5(text_encoder_2: T5EncoderModel) -> nn.Module:
    """The reference's `FluxTextEncoderT5` with the sizes and the weights of `text_encoder_2`."""
    t5 = flux_text_encoder_t5.FluxTextEncoderT5.__new__(flux_text_encoder_t5.FluxTextEncoderT5)
    T5EncoderModel.__init__(t5, text_encoder_2.config)
    t5.load_state_dict(text_encoder_2.state_dict())
    return t5.eval().requires_grad_(False)
