"""Tiny stand-ins of the models that DiffSynth-Studio's FLUX scripts name, in files of the published layouts.

They are as wide as the conventions that leave no trace in a file allow (heads of 128 in transformers, of 64 in CLIP,
32 groups in the VAE), so that every size follows from the shapes as it does for the released files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel, ReduxImageEncoder
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from benchmarks.support.tiny.ip_adapter import nested_state_dict
from benchmarks.support.tiny.nexus_gen import published_decoder
from benchmarks.support.tiny.qwen_vl import write_qwen_tokenizer
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
    NexusGenModel,
    Step1XConnector,
)
from diffusers_flux_ext.checkpoints.layouts import TensorRecipe, convert_transformer_state_dict
from diffusers_flux_ext.checkpoints.qwen_vl_files import infer_qwen_vl_config
from diffusers_flux_ext.checkpoints.vae_layouts import VAE_TABLES
from diffusers_flux_ext.inputs.qwen_vl import ImageProcessor, QwenVLProcessor
from diffusers_flux_ext.testing import randomise, seeded_generator, tiny_tokenizers
from diffusers_flux_ext.testing.tokenizers import write_clip_tokenizer, write_t5_tokenizer


TEXT, POOLED, VISION, LLM = 64, 64, 32, 128
DEPTH: dict[str, int] = {"num_layers": 2, "num_single_layers": 2}
DIT: dict[str, Any] = {
    **DEPTH,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": POOLED,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
CONTROLNETS: dict[str, dict[str, Any]] = {
    "inpaint": {"num_layers": 1, "num_single_layers": 0, "extra_condition_channels": 4},
    "union": {"num_layers": 1, "num_single_layers": 2, "num_mode": 10},
    "upscaler": {"num_layers": 1, "num_single_layers": 0},
    "infuse": {"num_layers": 1, "num_single_layers": 1},
}
DEV, REDUX, NEXUS, QWEN = (
    "black-forest-labs/FLUX.1-dev",
    "black-forest-labs/FLUX.1-Redux-dev",
    "DiffSynth-Studio/Nexus-GenV2",
    "Qwen/Qwen2.5-VL-7B-Instruct",
)
StateDict = dict[str, Any]


@cache
def dit(kind: str = "dev") -> FluxTransformer2DModel:
    """A transformer: `"dev"`, `"fill"`, `"flex"` or `"step1x"`."""
    changed: dict[str, Any] = {
        "fill": {"in_channels": 384, "out_channels": 64},
        "flex": {"in_channels": 196, "out_channels": 64},
        "step1x": {"guidance_embeds": False},
    }.get(kind, {})
    return randomise(FluxTransformer2DModel(**{**DIT, **changed}), 1)


@cache
def clip() -> CLIPTextModel:
    """CLIP's text model with one head."""
    sizes = {"hidden_size": POOLED, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 2}
    config = CLIPTextConfig(vocab_size=len(tiny_tokenizers()[0]), eos_token_id=2, hidden_act="quick_gelu", **sizes)
    return randomise(CLIPTextModel(config), 2)


@cache
def t5() -> T5EncoderModel:
    """T5's encoder."""
    sizes = {"d_model": TEXT, "d_kv": 16, "d_ff": 96, "num_heads": 4, "num_layers": 2}
    config = T5Config(vocab_size=len(tiny_tokenizers()[1]), feed_forward_proj="gated-gelu", **sizes)
    model = randomise(T5EncoderModel(config), 3)
    with torch.no_grad():
        model.encoder.embed_tokens.weight.copy_(model.shared.weight)
    return model


@cache
def vae() -> AutoencoderKLFlux:
    """A narrow VAE of 32 groups."""
    return randomise(AutoencoderKLFlux(block_out_channels=(32, 32, 64, 64)), 4)


@cache
def controlnet(kind: str) -> Any:
    """One of `CONTROLNETS`."""
    config = {**DIT, **CONTROLNETS[kind]}
    made = FluxExtControlNetModel if "extra_condition_channels" in config else FluxControlNetModel
    return randomise(made(**config), 5)


@cache
def siglip(seed: int) -> SiglipVisionModel:
    """SigLIP's vision model with sixteen heads, for images of the released size."""
    sizes = {"hidden_size": VISION, "intermediate_size": 48, "num_attention_heads": 16, "num_hidden_layers": 1}
    return randomise(SiglipVisionModel(SiglipVisionConfig(image_size=384, patch_size=128, **sizes)), seed)


@cache
def ip_adapter() -> FluxIPAdapter:
    """InstantX' IP-Adapter for the tiny transformer."""
    sizes: dict[str, Any] = {"attention_head_dim": 128, "num_attention_heads": 1, "cross_attention_dim": 20}
    blocks = sum(DEPTH.values())
    return randomise(FluxIPAdapter(num_blocks=blocks, image_embed_dim=VISION, num_tokens=4, **sizes), 6)


@cache
def projector() -> InfiniteYouImageProjector:
    """InfiniteYou's projector for faces of 16 numbers."""
    sizes = {"dim": 24, "depth": 1, "dim_head": 64, "heads": 1, "num_queries": 3, "embedding_dim": 16, "ff_mult": 2}
    return randomise(InfiniteYouImageProjector(**sizes, output_dim=TEXT), 7)


@cache
def values() -> AttributeValueEncoder:
    """AttriCtrl's encoders of two attributes, each with a file of its own."""
    attributes = ["brightness", "detail"]
    return randomise(AttributeValueEncoder(attributes=attributes, num_tokens=3, embed_dim=256, output_dim=TEXT), 8)


@cache
def lora_encoder() -> FluxLoRAEncoder:
    """LoRA-Encoder with 32 heads."""
    sizes = {"intermediate_size": 48, "num_encoder_layers": 1, "num_attention_heads": 32, "num_embeds_per_layer": 1}
    return randomise(FluxLoRAEncoder(**DEPTH, inner_dim=128, embed_dim=TEXT, num_special_embeds=1, **sizes), 9)


@cache
def lora_fusion() -> FluxLoRAFusion:
    """LoRA-Fusion's gates."""
    return randomise(FluxLoRAFusion(**DEPTH, inner_dim=128), 10)


@cache
def redux_embedder() -> ReduxImageEncoder:
    """Redux' embedder."""
    return randomise(ReduxImageEncoder(redux_dim=VISION, txt_in_features=TEXT), 11)


@cache
def connector() -> Step1XConnector:
    """Step1X-Edit's connector, of one head."""
    sizes = {"in_channels": LLM, "hidden_size": TEXT, "num_attention_heads": 1, "num_layers": 1, "pooled_dim": POOLED}
    return randomise(Step1XConnector(**sizes), 12)


@cache
def nexus_adapter() -> NexusGenAdapter:
    """Nexus-Gen's adapter for drawing."""
    return randomise(NexusGenAdapter(LLM, TEXT), 13)


@cache
def nexus_merger() -> NexusGenEditingMerger:
    """Nexus-Gen's merger for editing, with heads of 128."""
    sizes: dict[str, Any] = {"hidden_size": LLM, "intermediate_size": 64, "num_attention_heads": 1}
    sections = {"num_key_value_heads": 1, "expand_ratio": 1, "mrope_section": (16, 24, 24)}
    return randomise(NexusGenEditingMerger(output_dim=TEXT, **sizes, **sections), 14)


@cache
def language_model(kind: str) -> Any:
    """Qwen2.5-VL for Step1X-Edit, `"step1x"`, or Nexus-Gen's, `"nexus"`, with heads of 128."""
    shapes = {
        "model.language_model.embed_tokens.weight": (400, LLM),
        "model.language_model.layers.0.self_attn.q_proj.weight": (128, LLM),
        "model.language_model.layers.0.self_attn.k_proj.weight": (128, LLM),
        "model.language_model.layers.0.mlp.gate_proj.weight": (48, LLM),
        "model.visual.patch_embed.proj.weight": (64, 3, 2, 14, 14),
        "model.visual.blocks.0.mlp.gate_proj.weight": (48, 64),
        "model.visual.merger.mlp.2.weight": (LLM, 64),
    }
    config = Qwen2_5_VLConfig(**infer_qwen_vl_config({key: TensorRecipe((key,), s) for key, s in shapes.items()}))
    config.text_config.pad_token_id = None
    return randomise((NexusGenModel if kind == "nexus" else Qwen2_5_VLForConditionalGeneration)(config), 15)


def lora(seed: int = 0, rank: int = 2) -> StateDict:
    """A LoRA without alphas in DiffSynth-Studio's names, of all layers that the encoder reads."""
    weights = {}
    for name, (inputs, outputs) in lora_encoder().layer_shapes.items():
        generator = seeded_generator(seed, name)
        weights[f"{name}.lora_A.weight"] = 0.2 * torch.randn(rank, inputs, generator=generator)
        weights[f"{name}.lora_B.weight"] = 0.2 * torch.randn(outputs, rank, generator=generator)
    return weights


def timestep_lora(rank: int = 2) -> StateDict:
    """A timestep LoRA in the published names: no norms, and only attention in single blocks."""
    weights: StateDict = {}
    for name, layer in dit().named_modules():
        single, inner = name.startswith("single_"), ".attn." in name or ".ff" in name
        if not isinstance(layer, torch.nn.Linear) or not inner or (single and ".attn." not in name):
            continue
        generator, prefix = seeded_generator(18, name), f"base_model.model.{name}"
        weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) / 10
        weights[f"{prefix}.lora_B.weight"] = 0.3 * torch.randn(layer.out_features, rank, generator=generator)
        for part, bias in (("gamma", 1.0), ("beta", 0.0)):
            weights[f"{prefix}.lora_time_{part}.weight"] = torch.randn(rank, 256, generator=generator) / 16
            weights[f"{prefix}.lora_time_{part}.bias"] = bias + 0.3 * torch.randn(rank, generator=generator)
    return weights


# ---- files ---------------------------------------------------------------------------------------------------------


def bfl_dit(kind: str = "dev") -> StateDict:
    """The file of a transformer in Black Forest Labs' names."""
    return convert_transformer_state_dict(dit(kind).state_dict(), to="bfl")


def bfl_vae() -> StateDict:
    """`ae.safetensors`, whose attention is made of convolutions."""
    weights, file = vae().state_dict(), {}
    for name, (ours,) in VAE_TABLES[0].keys.items():
        if ours in weights:
            tensor = weights[ours]
            file[name] = tensor[..., None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
    return file


def prefixed(model: torch.nn.Module, prefix: str) -> StateDict:
    """A model's weights under a prefix, which some versions of transformers have."""
    return {f"{prefix}{key.removeprefix(prefix)}": tensor for key, tensor in model.state_dict().items()}


def published_llm(kind: str) -> StateDict:
    """The language model under the names of transformers 4."""
    return {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for key, tensor in language_model(kind).state_dict().items()
    }


def _t5_file() -> StateDict:
    return {key: tensor for key, tensor in t5().state_dict().items() if key != "encoder.embed_tokens.weight"}


def _step1x_file() -> StateDict:
    return bfl_dit("step1x") | {f"connector.{key}": tensor for key, tensor in published_weights(connector()).items()}


@dataclass(frozen=True)
class StandIn:
    """One file of a repository.

    Attributes:
        file (`str`): Its name.
        weights (`Callable`): Its tensors.
        shards (`int`): Into how many files it is cut.
        models (`Mapping[str, Callable]`): The reference's models in it by the reference's names, as ours.
    """

    file: str
    weights: Callable[[], StateDict]
    shards: int = 1
    models: Mapping[str, Callable[[], Any]] = field(default_factory=dict)


FILES: dict[tuple[str, str], StandIn] = {
    (DEV, "flux1-dev.safetensors"): StandIn("flux1-dev.safetensors", bfl_dit, 1, {"flux_dit": dit}),
    (DEV, "text_encoder/model.safetensors"): StandIn(
        "text_encoder/model.safetensors", lambda: prefixed(clip(), "text_model."), 1, {"flux_text_encoder_clip": clip}
    ),
    (DEV, "text_encoder_2/*.safetensors"): StandIn(
        "text_encoder_2/model.safetensors", _t5_file, 2, {"flux_text_encoder_t5": t5}
    ),
    (DEV, "ae.safetensors"): StandIn("ae.safetensors", bfl_vae, 1, {"flux_vae_encoder": vae, "flux_vae_decoder": vae}),
    ("black-forest-labs/FLUX.1-Krea-dev", "flux1-krea-dev.safetensors"): StandIn(
        "flux1-krea-dev.safetensors", bfl_dit, 1, {"flux_dit": dit}
    ),
    ("black-forest-labs/FLUX.1-Kontext-dev", "flux1-kontext-dev.safetensors"): StandIn(
        "flux1-kontext-dev.safetensors", bfl_dit, 1, {"flux_dit": dit}
    ),
    ("black-forest-labs/FLUX.1-Fill-dev", "flux1-fill-dev.safetensors"): StandIn(
        "flux1-fill-dev.safetensors", lambda: bfl_dit("fill"), 1, {"flux_dit": lambda: dit("fill")}
    ),
    ("black-forest-labs/FLUX.1-Fill-dev", "text_encoder/model.safetensors"): StandIn(
        "text_encoder/model.safetensors", lambda: prefixed(clip(), "text_model."), 1, {"flux_text_encoder_clip": clip}
    ),
    ("black-forest-labs/FLUX.1-Fill-dev", "text_encoder_2/*.safetensors"): StandIn(
        "text_encoder_2/model.safetensors", _t5_file, 2, {"flux_text_encoder_t5": t5}
    ),
    ("black-forest-labs/FLUX.1-Fill-dev", "ae.safetensors"): StandIn(
        "ae.safetensors", bfl_vae, 1, {"flux_vae_encoder": vae, "flux_vae_decoder": vae}
    ),
    ("ostris/Flex.2-preview", "Flex.2-preview.safetensors"): StandIn(
        "Flex.2-preview.safetensors", lambda: bfl_dit("flex"), 1, {"flux_dit": lambda: dit("flex")}
    ),
    **{
        (model_id, pattern): StandIn(
            pattern.replace("*", "model"),
            (lambda kind: lambda: dict(controlnet(kind).state_dict()))(kind),
            shards,
            {"flux_controlnet": (lambda kind: lambda: controlnet(kind))(kind)},
        )
        for kind, model_id, pattern, shards in (
            (
                "inpaint",
                "alimama-creative/FLUX.1-dev-Controlnet-Inpainting-Beta",
                "diffusion_pytorch_model.safetensors",
                1,
            ),
            ("union", "InstantX/FLUX.1-dev-Controlnet-Union-alpha", "diffusion_pytorch_model.safetensors", 1),
            ("upscaler", "jasperai/Flux.1-dev-Controlnet-Upscaler", "diffusion_pytorch_model.safetensors", 1),
            ("infuse", "ByteDance/InfiniteYou", "infu_flux_v1.0/aes_stage2/InfuseNetModel/*.safetensors", 2),
        )
    },
    ("ByteDance/InfiniteYou", "infu_flux_v1.0/aes_stage2/image_proj_model.bin"): StandIn(
        "infu_flux_v1.0/aes_stage2/image_proj_model.bin",
        lambda: {"image_proj": dict(projector().state_dict())},
        1,
        {"infiniteyou_image_projector": projector},
    ),
    ("InstantX/FLUX.1-dev-IP-Adapter", "ip-adapter.bin"): StandIn(
        "ip-adapter.bin", lambda: nested_state_dict(ip_adapter()), 1, {"flux_ipadapter": ip_adapter}
    ),
    ("google/siglip-so400m-patch14-384", "model.safetensors"): StandIn(
        "model.safetensors",
        lambda: (
            prefixed(siglip(16), "vision_model.")
            | {"logit_scale": torch.ones(1), "text_model.x.weight": torch.ones(2)}
        ),
        1,
        {"siglip_vision_model": lambda: siglip(16)},
    ),
    (REDUX, "image_encoder/model.safetensors"): StandIn(
        "image_encoder/model.safetensors",
        lambda: prefixed(siglip(17), "vision_model."),
        1,
        {"flux_redux_image_encoder": lambda: siglip(17)},
    ),
    (REDUX, "image_embedder/diffusion_pytorch_model.safetensors"): StandIn(
        "image_embedder/diffusion_pytorch_model.safetensors",
        lambda: dict(redux_embedder().state_dict()),
        1,
        {"flux_redux_image_embedder": redux_embedder},
    ),
    **{
        ("DiffSynth-Studio/AttriCtrl-FLUX.1-Dev", f"models/{name}.safetensors"): StandIn(
            f"models/{name}.safetensors",
            (lambda index: lambda: dict(values().encoders[index].state_dict()))(index),
            1,
            {"flux_value_controller": (lambda index: lambda: (values(), index))(index)},
        )
        for index, name in enumerate(("brightness", "detail"))
    },
    ("DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev", "model.safetensors"): StandIn(
        "model.safetensors", lambda: dict(lora_encoder().state_dict()), 1, {"flux_lora_encoder": lora_encoder}
    ),
    ("DiffSynth-Studio/LoRAFusion-preview-FLUX.1-dev", "model.safetensors"): StandIn(
        "model.safetensors", lambda: dict(lora_fusion().state_dict()), 1, {"flux_lora_patcher": lora_fusion}
    ),
    ("stepfun-ai/Step1X-Edit", "step1x-edit-i1258.safetensors"): StandIn(
        "step1x-edit-i1258.safetensors",
        _step1x_file,
        1,
        {"flux_dit": lambda: dit("step1x"), "step1x_connector": connector},
    ),
    ("stepfun-ai/Step1X-Edit", "vae.safetensors"): StandIn(
        "vae.safetensors", bfl_vae, 1, {"flux_vae_encoder": vae, "flux_vae_decoder": vae}
    ),
    (QWEN, "model-*.safetensors"): StandIn(
        "model-part.safetensors",
        lambda: published_llm("step1x"),
        2,
        {"qwen_image_text_encoder": lambda: language_model("step1x")},
    ),
    (NEXUS, "model*.safetensors"): StandIn(
        "model.safetensors", lambda: published_llm("nexus"), 2, {"nexus_gen_llm": lambda: language_model("nexus")}
    ),
    (NEXUS, "generation_decoder.bin"): StandIn(
        "generation_decoder.bin",
        lambda: published_decoder(dit(), nexus_adapter()),
        1,
        {"flux_dit": dit, "nexus_gen_generation_adapter": nexus_adapter},
    ),
    (NEXUS, "edit_decoder.bin"): StandIn(
        "edit_decoder.bin",
        lambda: published_decoder(dit(), nexus_merger()),
        1,
        {"flux_dit": dit, "nexus_gen_editing_adapter": nexus_merger},
    ),
}
"""By repository and pattern, what the scripts name as models."""

LORAS: dict[str, Callable[[], StateDict]] = {
    "DiffSynth-Studio/Eligen/model_bf16.safetensors": lora,
    "VoidOc/flux_animal_forest1/20.safetensors": lambda: lora(1),
    "cancel13/cxsk/30.safetensors": lambda: lora(2),
    "DiffSynth-Studio/ArtAug-lora-FLUX.1dev-v1/merged_lora.safetensors": lambda: lora(3),
    "HuanJue/Insert-Anything/20250321_steps5000_pytorch_lora_weights.safetensors": lambda: lora(4),
    "DiffSynth-Studio/MultiAlign-FLUX.1-dev/adapter_model.safetensors": timestep_lora,
}


def write(root: Path, key: tuple[str, str]) -> None:
    """Write one of `FILES` below a folder, where downloads of its repository lie."""
    stand_in = FILES[key]
    _write(root / key[0] / stand_in.file, stand_in.weights(), stand_in.shards)


def _write(path: Path, weights: StateDict, shards: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save(weights, path)
        return
    names = sorted(weights)
    for number in range(shards):
        part = {name: weights[name].clone().contiguous() for name in names[number::shards]}
        file = path if shards == 1 else path.with_name(f"{path.stem}-{number + 1:05}-of-{shards:05}.safetensors")
        save_file(part, file)


def write_all(root: Path) -> None:
    """Write all models, LoRAs, tokenizers and processors."""
    write_base(root)
    for key in FILES:
        if key[0] != DEV:
            write(root, key)
    for name, weights in LORAS.items():
        _write(root / name, weights())
    for folder in (root / QWEN, root / NEXUS / "processor"):
        folder.mkdir(parents=True, exist_ok=True)
        write_qwen_tokenizer(folder)
        ImageProcessor(min_pixels=56 * 56, max_pixels=12845056).save_pretrained(folder)


def write_base(root: Path) -> None:
    """Write FLUX.1-dev, its tokenizers and EliGen's LoRA."""
    for key in FILES:
        if key[0] == DEV:
            write(root, key)
    _write(root / "DiffSynth-Studio/Eligen/model_bf16.safetensors", lora())
    for name, write_tokenizer in (("tokenizer", write_clip_tokenizer), ("tokenizer_2", write_t5_tokenizer)):
        folder = root / DEV / name
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder)


def qwen_processor(root: Path, repository: str = QWEN) -> QwenVLProcessor:
    """The processor that `write_all` wrote."""
    return QwenVLProcessor.from_pretrained(root / repository)
