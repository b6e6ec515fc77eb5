"""The released files of DiffSynth-Studio's FLUX models, by names and shapes on the meta device."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel, ReduxImageEncoder
from transformers import SiglipConfig, SiglipModel

from benchmarks.support.tiny.ip_adapter import nested_state_dict
from benchmarks.support.tiny.step1x import published_weights
from diffusers_flux_ext import (
    AttributeValueEncoder,
    AutoencoderKLFlux,
    FluxExtControlNetModel,
    FluxIPAdapter,
    FluxLoRAEncoder,
    FluxLoRAFusion,
    InfiniteYouImageProjector,
    NexusGenAdapter,
    NexusGenEditingMerger,
    Step1XConnector,
)
from diffusers_flux_ext.checkpoints.layouts import PREFIX, convert_transformer_state_dict
from diffusers_flux_ext.checkpoints.vae_layouts import VAE_TABLES
from diffusers_flux_ext.methods.nexus_gen.released import language_model
from diffusers_flux_ext.models.released import clip_text, qwen_vl, siglip, t5_text


StateDict = dict[str, Any]
SIGLIP: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}


def _meta(make: Callable[..., Any], **sizes: Any) -> Any:
    with torch.device("meta"):
        return make(**sizes)


def _weights(make: Callable[..., Any], **sizes: Any) -> StateDict:
    return dict(_meta(make, **sizes).state_dict())


def _dit(layout: str, **sizes: Any) -> StateDict:
    weights = _weights(FluxTransformer2DModel, **{"guidance_embeds": True, **sizes})
    return convert_transformer_state_dict(weights, to=layout)  # type: ignore[arg-type]


def _prefixed(prefix: str, weights: StateDict) -> StateDict:
    return {key if key.startswith(prefix) else f"{prefix}{key}": tensor for key, tensor in weights.items()}


def _t5() -> StateDict:
    return {key: tensor for key, tensor in _weights(t5_text).items() if key != "encoder.embed_tokens.weight"}


def _vae() -> StateDict:
    weights, file = _weights(AutoencoderKLFlux), {}
    for name, (ours,) in VAE_TABLES[0].keys.items():
        if ours in weights:
            tensor = weights[ours]
            file[name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    return file


def _values() -> StateDict:
    weights = _weights(AttributeValueEncoder, attributes=["brightness"])
    return {key.removeprefix("encoders.0."): tensor for key, tensor in weights.items()}


def _controlnet(**sizes: Any) -> StateDict:
    kind = FluxExtControlNetModel if "extra_condition_channels" in sizes else FluxControlNetModel
    return _weights(kind, guidance_embeds=True, **sizes)


def _llm(make: Callable[[], Any]) -> StateDict:
    return {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for key, tensor in _weights(make).items()
    }


def _decoder(part: StateDict) -> StateDict:
    return _prefixed("pipe.dit.", _dit("diffsynth")) | part


def _whole_siglip() -> StateDict:
    text = {**SIGLIP, "vocab_size": 32000, "max_position_embeddings": 64, "projection_size": SIGLIP["hidden_size"]}
    vision = {**SIGLIP, "image_size": 384, "patch_size": 14}
    return _weights(lambda: SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))


def _step1x() -> StateDict:
    connector = published_weights(_meta(Step1XConnector))
    return _dit("bfl", guidance_embeds=False) | _prefixed("connector.", connector)


RELEASED: dict[str, tuple[str, Callable[[], StateDict]]] = {
    "a29710fea6dddb0314663ee823598e50": ("flux1-dev.safetensors, Krea, Kontext", lambda: _dit("bfl")),
    "605c56eab23e9e2af863ad8f0813a25d": ("transformer/*.safetensors in diffusers' names", lambda: _dit("diffusers")),
    "f876d2a6fb247fb7da0f84fc7fb8a823": (
        "flux1-fill-dev.safetensors",
        lambda: _dit("bfl", in_channels=384, out_channels=64),
    ),
    "94eefa3dac9cec93cb1ebaf1747d7b78": (
        "text_encoder/model.safetensors",
        lambda: _prefixed("text_model.", _weights(clip_text)),
    ),
    "22540b49eaedbc2f2784b2091a234c7c": ("text_encoder_2/*.safetensors", _t5),
    "21ea55f476dfc4fd135587abb59dfe5d": ("ae.safetensors", _vae),
    "d02f41c13549fa5093d3521f62a5570a": (
        "Flex.2-preview.safetensors",
        lambda: _dit("bfl", in_channels=196, out_channels=64, num_layers=8),
    ),
    "0629116fce1472503a66992f96f3eb1a": ("models/brightness.safetensors", _values),
    "52357cb26250681367488a8954c271e8": (
        "ControlNet Inpainting-Beta",
        lambda: _controlnet(num_layers=6, num_single_layers=0, extra_condition_channels=4),
    ),
    "78d18b9101345ff695f312e7e62538c0": (
        "ControlNet Union-alpha",
        lambda: _controlnet(num_layers=5, num_single_layers=10, num_mode=10),
    ),
    "b001c89139b5f053c715fe772362dd2a": (
        "ControlNet Upscaler",
        lambda: _controlnet(num_layers=5, num_single_layers=0),
    ),
    "c07c0f04f5ff55e86b4e937c7a40d481": (
        "image_proj_model.bin",
        lambda: {"image_proj": _weights(InfiniteYouImageProjector)},
    ),
    "7f9583eb8ba86642abb9a21a4b2c9e16": (
        "InfuseNetModel/*.safetensors",
        lambda: _controlnet(num_layers=4, num_single_layers=10),
    ),
    "77c2e4dd2440269eb33bfaa0d004f6ab": ("LoRA-Encoder, model.safetensors", lambda: _weights(FluxLoRAEncoder)),
    "30143afb2dea73d1ac580e0787628f8c": ("LoRAFusion, model.safetensors", lambda: _weights(FluxLoRAFusion)),
    "2bd19e845116e4f875a0a048e27fc219": ("Nexus-GenV2, model*.safetensors", lambda: _llm(language_model)),
    "63c969fd37cce769a90aa781fbff5f81": (
        "edit_decoder.bin",
        lambda: _decoder(_prefixed("embedding_merger.", _weights(NexusGenEditingMerger))),
    ),
    "3e6c61b0f9471135fc9c6d6a98e98b6d": ("generation_decoder.bin", lambda: _decoder(_weights(NexusGenAdapter))),
    "4daaa66cc656a8fe369908693dad0a35": ("ip-adapter.bin", lambda: nested_state_dict(_meta(FluxIPAdapter))),
    "04d8c1e20a1f1b25f7434f111992a33f": ("siglip-so400m-patch14-384, model.safetensors", _whole_siglip),
    "6bd5343828144a2135d783519c665e2c": (
        "Redux, image_encoder/model.safetensors",
        lambda: _prefixed("vision_model.", _weights(siglip)),
    ),
    "d8ea4618391460bc831fddaae5fb5288": (
        "Redux, image_embedder/*.safetensors",
        lambda: _weights(ReduxImageEncoder),
    ),
    "d30fb9e02b1dbf4e509142f05cf7dd50": ("step1x-edit-i1258.safetensors", _step1x),
    "3394f306c4cbf04334b712bf5aaed95f": ("majicflus_v134.safetensors", lambda: _prefixed(PREFIX, _dit("bfl"))),
    "8004730443f55db63092006dd9f7110e": ("Qwen2.5-VL-7B-Instruct, model-*.safetensors", lambda: _llm(qwen_vl)),
}
"""By the reference's fingerprint: the file, and what gives its names and shapes."""
