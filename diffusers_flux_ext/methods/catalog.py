"""The released models and what each method adds to them, on the meta device: plans without weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel, ReduxImageEncoder
from torch import nn
from transformers import (
    AutoConfig,
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

from ..offload.budget.api import plan_vram
from ..offload.budget.demand import INSTRUCTION_TOKENS, MEGAPIXEL_TOKENS, REDUX_TOKENS, Added
from ..offload.budget.plan import VRAMPlan
from .attribute_control.encoder import AttributeValueEncoder
from .control.model import FluxExtControlNetModel
from .infinite_you.projector import InfiniteYouImageProjector
from .ip_adapter.model import FluxIPAdapter
from .lora_encoder.model import FluxLoRAEncoder
from .nexus_gen.adapter import NexusGenAdapter
from .nexus_gen.language_model import NexusGenModel
from .nexus_gen.merger import NexusGenEditingMerger
from .step1x_edit.connector import Step1XConnector


FLUX_DEV = "FLUX.1-dev"
_T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
_VAE: dict[str, Any] = {
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
_FILL = {"in_channels": 384, "out_channels": 64}
_XLABS_ADAPTER: dict[str, Any] = {
    "num_blocks": 19,
    "image_embed_dim": 768,
    "num_tokens": 4,
    "image_proj_type": "linear",
    "kv_bias": True,
    "key_norm_eps": None,
    "after_block": True,
}


def siglip() -> nn.Module:
    """SigLIP so400m, on the default device."""
    return SiglipVisionModel(SiglipVisionConfig(**_SIGLIP))


def qwen_vl(kind: Any = Qwen2_5_VLForConditionalGeneration) -> nn.Module:
    """Qwen2.5-VL 7B, on the default device."""
    return kind(Qwen2_5_VLConfig(text_config=_QWEN_TEXT, vision_config=_QWEN_VISION, tie_word_embeddings=False))


def controlnet(**config: Any) -> Callable[[], nn.Module]:
    """Makes a ControlNet of the released width, on the default device."""
    kind = FluxExtControlNetModel if "extra_condition_channels" in config else FluxControlNetModel
    return lambda: kind(guidance_embeds=True, **config)


# By their published names: depth and inputs.
CONTROLNETS: dict[str, Callable[[], nn.Module]] = {
    "Union-Pro": controlnet(num_layers=5, num_single_layers=10, num_mode=10),
    "Inpainting-Beta": controlnet(num_layers=6, num_single_layers=0, extra_condition_channels=4),
    "XLabs": controlnet(num_layers=2, num_single_layers=0, patch_size=2, conditioning_embedding_channels=16),
    "InfuseNet": controlnet(num_layers=4, num_single_layers=10),
}


@dataclass(frozen=True)
class Method:
    """
    What a method adds to FLUX.1-dev.

    Attributes:
        about (`str`): In a few words.
        modules (`Mapping[str, Callable]`): Makes its modules, by name.
        transformer (`Mapping[str, Any]`): Entries of the transformer's config that it changes.
        counts (`str`, *optional*): What a number given with the method counts; without it there is none.
        count (`int`): That number by default.
        added (`Callable`): What so many of them add.
    """

    about: str
    modules: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    transformer: Mapping[str, Any] = field(default_factory=dict)
    counts: str | None = None
    count: int = 1
    added: Callable[[int], Added] = lambda number: Added()

    @property
    def counted(self) -> str:
        """How many it counts by default, such as `"3 entities"` or `"1 reference"`; empty if it takes no number."""
        if self.counts is None:
            return ""
        return f"{self.count} {self.counts.removesuffix('s') if self.count == 1 else self.counts}"


def _adapter_held(blocks: int, tokens: int) -> Callable[[int], Added]:
    """Keys and values of the pictures, in two bytes, which stay for all steps."""
    return lambda number: Added(held_bytes=number * 2 * blocks * tokens * 3072 * 2)


# One entry per method: a new one is planned as soon as it stands here.
METHODS: dict[str, Method] = {
    "eligen": Method(
        "entities in regions",
        counts="entities",
        count=3,
        added=lambda number: Added(text_tokens=512 * number, texts=number, masked=True),
    ),
    "inpaint": Method("a region is redrawn"),
    "fill": Method("FLUX.1-Fill-dev", transformer=_FILL),
    "flex": Method(
        "Flex.2-preview",
        transformer={"in_channels": 196, "out_channels": 64, "num_layers": 8, "num_single_layers": 38},
    ),
    "kontext": Method(
        "reference pictures of a megapixel",
        counts="references",
        added=lambda number: Added(reference_tokens=MEGAPIXEL_TOKENS * number),
    ),
    "controlnet": Method("ControlNet Union-Pro", {"controlnet": CONTROLNETS["Union-Pro"]}),
    "controlnet-inpaint": Method("ControlNet Inpainting-Beta", {"controlnet_inpaint": CONTROLNETS["Inpainting-Beta"]}),
    "controlnet-xlabs": Method("ControlNet of XLabs", {"controlnet_xlabs": CONTROLNETS["XLabs"]}),
    "infinite-you": Method(
        "InfiniteYou; face detection runs on the CPU",
        {"image_projector": InfiniteYouImageProjector, "infuse_net": CONTROLNETS["InfuseNet"]},
    ),
    "ip-adapter": Method(
        "IP-Adapter of InstantX",
        {"image_encoder": siglip, "ip_adapter": FluxIPAdapter},
        counts="pictures",
        added=_adapter_held(57, 128),
    ),
    "ip-adapter-xlabs": Method(
        "IP-Adapter of XLabs",
        {
            "image_encoder_xlabs": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**_CLIP_VISION)),
            "ip_adapter_xlabs": lambda: FluxIPAdapter(**_XLABS_ADAPTER),
        },
        counts="pictures",
        added=_adapter_held(19, 4),
    ),
    "attribute-control": Method(
        "AttriCtrl",
        {"value_encoder": AttributeValueEncoder},
        counts="attributes",
        added=lambda number: Added(text_tokens=32 * number),
    ),
    "lora-encoder": Method(
        "LoRA-Encoder",
        {"lora_encoder": FluxLoRAEncoder},
        counts="LoRAs",
        added=lambda number: Added(text_tokens=number),
    ),
    "redux": Method(
        "FLUX.1 Redux",
        {"image_encoder": siglip, "image_embedder": ReduxImageEncoder},
        counts="pictures",
        added=lambda number: Added(text_tokens=REDUX_TOKENS * number),
    ),
    "insert-anything": Method(
        "Insert-Anything; its canvas is twice as wide as high",
        {"image_encoder": siglip, "image_embedder": ReduxImageEncoder},
        _FILL,
        added=lambda number: Added(text_tokens=REDUX_TOKENS),
    ),
    "step1x-edit": Method(
        "Step1X-Edit",
        {"mllm": qwen_vl, "connector": Step1XConnector},
        {"guidance_embeds": False},
        added=lambda number: Added(prompt_tokens=INSTRUCTION_TOKENS, canvases=number),
    ),
    "nexus-gen": Method(
        "Nexus-Gen V2, drawing",
        {"mllm_nexus_gen": lambda: qwen_vl(NexusGenModel), "generation_adapter": NexusGenAdapter},
    ),
    "nexus-gen-edit": Method(
        "Nexus-Gen V2, editing",
        {"mllm_nexus_gen": lambda: qwen_vl(NexusGenModel), "editing_adapter": NexusGenEditingMerger},
    ),
    "mask-padding": Method("nobody sees the padding of prompts", added=lambda number: Added(masked=True)),
}


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules made inside have bfloat16 weights on the meta device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def flux_models(model: str = FLUX_DEV, **transformer: Any) -> dict[str, nn.Module]:
    """
    The models of a FLUX.1 pipeline on the meta device.

    Args:
        model (`str`, *optional*, defaults to `"FLUX.1-dev"`):
            FLUX.1-dev, whose sizes are built in, or a folder or repository of a pipeline, whose configs are read.
        transformer: Entries of the transformer's config to change.

    Returns:
        `dict[str, torch.nn.Module]`: in bfloat16.

    Raises:
        OSError: if there is no such folder or repository.
    """
    if model == FLUX_DEV:
        configs: dict[str, Any] = {"transformer": {"guidance_embeds": True}, "vae": _VAE}
        clip: Any = CLIPTextConfig(**_CLIP)
        t5: Any = T5Config(feed_forward_proj="gated-gelu", **_T5)
    else:
        kinds: dict[str, Any] = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}
        configs = {name: kind.load_config(model, subfolder=name) for name, kind in kinds.items()}
        clip, t5 = (_text_config(model, name) for name in ("text_encoder", "text_encoder_2"))
    with on_meta():
        return {
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5),
            "transformer": FluxTransformer2DModel.from_config({**configs["transformer"], **transformer}),
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }


def _text_config(model: str, name: str) -> Any:
    if os.path.isdir(model):
        return AutoConfig.from_pretrained(os.path.join(model, name))
    return AutoConfig.from_pretrained(model, subfolder=name)


def plan_methods(
    methods: Sequence[tuple[str, int | None]] = (), model: str = FLUX_DEV, budget_gib: float = 8, **kwargs: Any
) -> VRAMPlan:
    """
    A plan for methods together, from sizes alone: no weights are loaded.

    Args:
        methods (`Sequence[tuple[str, int or None]]`, *optional*):
            Names of `METHODS`, each with how many entities, references, pictures and so on.
        model (`str`, *optional*, defaults to `"FLUX.1-dev"`): See [`flux_models`].
        budget_gib (`float`, *optional*, defaults to 8): The budget.
        kwargs: The other arguments of [`plan_vram`].

    Returns:
        `VRAMPlan`

    Raises:
        VRAMBudgetError: if the budget is too small.
        ValueError: if there is no method of a name, if one takes no number, or if two need different transformers.
    """
    unknown = sorted({name for name, _ in methods} - METHODS.keys())
    if unknown:
        raise ValueError(f"There are no methods {unknown}. Known are {sorted(METHODS)}.")
    chosen = [(METHODS[name], count) for name, count in methods]
    _check_numbers(methods)
    models = flux_models(model, **_changes(methods))
    with on_meta():
        for method, _ in chosen:
            models |= {name: make() for name, make in method.modules.items()}
    added = [method.added(method.count if count is None else count) for method, count in chosen]
    return plan_vram(models, budget_gib, added=added, **kwargs)


def _check_numbers(methods: Sequence[tuple[str, int | None]]) -> None:
    wrong = [f"{name}={count}" for name, count in methods if count is not None and METHODS[name].counts is None]
    if wrong:
        raise ValueError(f"{wrong} take no number. Those that do are {[n for n in METHODS if METHODS[n].counts]}.")


def _changes(methods: Sequence[tuple[str, int | None]]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    by: dict[str, str] = {}
    for name, _ in methods:
        for key, value in METHODS[name].transformer.items():
            if changes.setdefault(key, value) != value:
                raise ValueError(f"{by[key]!r} and {name!r} need different transformers (`{key}`). Plan one of them.")
            by.setdefault(key, name)
    return changes
