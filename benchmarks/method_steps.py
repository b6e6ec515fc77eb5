"""What the tables of methods run: the conditions of each method, with tiny modules or those of the released sizes.

A new method is one entry of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import FluxControlNetModel, ReduxImageEncoder
from torch import nn

from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.infinite_you import tiny_projector
from benchmarks.support.tiny.ip_adapter import EMBED_DIM, XLABS, picture, tiny_ip_adapter
from benchmarks.support.tiny.lora_encoder import lora_for, tiny_lora_encoder
from benchmarks.support.tiny.nexus_gen import tiny_adapter, tiny_merger
from benchmarks.support.tiny.qwen_vl import HIDDEN
from benchmarks.support.tiny.redux import tiny_redux_embedder
from benchmarks.support.tiny.step1x import edited, tiny_connector
from diffusers_flux_ext import (
    AttributeValueEncoder,
    AttributeValues,
    Canvas,
    ControlNetImage,
    DenoisingStep,
    EntityRegions,
    FillMask,
    FlexControl,
    FluxCondition,
    FluxIPAdapter,
    FluxLoRAEncoder,
    InfiniteYouIdentity,
    InfiniteYouImageProjector,
    InpaintRegion,
    IPAdapterImages,
    LoRAEmbedding,
    NexusGenAdapter,
    NexusGenEditingMerger,
    NexusGenEmbedding,
    PlanCache,
    PromptEmbeds,
    ReduxImages,
    ReferenceImages,
    Step1XConnector,
    Step1XInstruction,
    predict_velocity,
    regional_attention,
)
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.testing import seeded


@dataclass(frozen=True)
class StepSizes:
    """Numbers of tokens, and widths of what conditions are given.

    Attributes:
        side (`int`): Tokens on a side of the image.
        text (`int`): Text tokens of the prompt.
        prompt (`int`): Those that are not padding, where padding is hidden.
        patches (`int`): Of Redux' image.
        instruction (`int`): Tokens of Step1X-Edit's instruction.
        drawn (`int`): Image tokens of Nexus-Gen.
        drawn_side (`int`): A side of the square of image tokens that Nexus-Gen edits to.
        given_side (`int`): A side of the square of image tokens that it edits.
        siglip (`int`): Width of SigLIP.
        clip (`int`): Width of CLIP's image embedding.
        qwen (`int`): Width of Qwen2.5-VL.
        face (`int`): Width of a face embedding.
    """

    side: int
    text: int
    prompt: int
    patches: int
    instruction: int
    drawn: int
    drawn_side: int
    given_side: int
    siglip: int
    clip: int
    qwen: int
    face: int


# A quarter of the released numbers of tokens and heads of the released size: the shares of a step stay the same.
QUARTER = StepSizes(32, 128, 12, 182, 160, 20, 5, 9, EMBED_DIM, EMBED_DIM, HIDDEN, 16)
RELEASED = StepSizes(64, 512, 48, 729, 640, 81, 9, 18, 1152, 768, 3584, 512)
HEADS: dict[str, Any] = {"attention_head_dim": 128, "num_attention_heads": 4}
WIDE: dict[str, Any] = {**HEADS, "axes_dims_rope": (16, 56, 56)}
DEPTH: dict[str, Any] = {"num_layers": 1, "num_single_layers": 2}
BOXES = [(0.0, 0.0, 0.31, 0.45), (0.33, 0.0, 0.64, 0.45), (0.66, 0.5, 0.97, 0.95)]
LEFT = (0.0, 0.0, 0.5, 1.0)

Modules = Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """A module in two sizes.

    Attributes:
        tiny (`Callable`): Makes it with a quarter of the released numbers of tokens and heads, with weights.
        released (`Callable`): Makes it in the released size; its weights do not matter.
    """

    tiny: Callable[[], nn.Module]
    released: Callable[[], nn.Module]


@dataclass(frozen=True)
class MethodStep:
    """One row of the tables.

    Attributes:
        setup (`str`): What runs, in words.
        build (`Callable`): Makes the conditions, given their modules by name and the sizes.
        modules (`Mapping[str, Made]`): The modules that stay in memory during the loop.
        channels (`int`): Channels that the conditions add.
        hides_padding (`bool`): Whether the prompt's padding is hidden, too.
    """

    setup: str
    build: Callable[[Modules, StepSizes], list[FluxCondition]]
    modules: Mapping[str, Made] = field(default_factory=dict)
    channels: int = 0
    hides_padding: bool = False


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=seeded())


def _entities(modules: Modules, sizes: StepSizes, **options: Any) -> list[FluxCondition]:
    return [EntityRegions(["a red dog", "a tree", "a blue bird"], BOXES, **options)]


def _reference(modules: Modules, sizes: StepSizes, **options: Any) -> list[FluxCondition]:
    image = picture(0, (16 * sizes.side, 16 * sizes.side))
    return [ReferenceImages(image, preferred_size=False, **options)]


def _identity(modules: Modules, sizes: StepSizes) -> list[FluxCondition]:
    face = nn.functional.normalize(_normal(sizes.face), dim=0)
    return [InfiniteYouIdentity(modules["controlnet"], modules["projector"], id_embeds=face)]


def _adapter(depth: int, **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: tiny_ip_adapter(1, **{**sizes, **HEADS, "num_blocks": depth})


def _xlabs() -> nn.Module:
    sizes = {**XLABS, **HEADS, "num_blocks": 19, "num_attention_heads": 24}
    return FluxIPAdapter(**{**sizes, "cross_attention_dim": 4096, "image_embed_dim": 768})


def _redux(modules: Modules, sizes: StepSizes, **options: Any) -> list[FluxCondition]:
    embeds = _normal(1, sizes.patches, sizes.siglip)
    return [ReduxImages(image_embeds=embeds, image_embedder=modules["embedder"], **options)]


def _step1x(modules: Modules, sizes: StepSizes) -> list[FluxCondition]:
    embeds = _normal(1, sizes.instruction, sizes.qwen)
    return [Step1XInstruction(modules["connector"], edited(), instruction_embeds=embeds)]


def _nexus_gen(modules: Modules, sizes: StepSizes) -> list[FluxCondition]:
    embeds = {"image_embeds": _normal(1, sizes.drawn, sizes.qwen)}
    return [NexusGenEmbedding(modules["adapter"], image_embeds=embeds)]


def _nexus_gen_edit(modules: Modules, sizes: StepSizes) -> list[FluxCondition]:
    drawn, given = (_normal(1, side * side, sizes.qwen) for side in (sizes.drawn_side, sizes.given_side))
    grid = torch.tensor((2 * sizes.given_side, 2 * sizes.given_side))
    embeds = {"image_embeds": drawn, "reference_embeds": given, "reference_grid": grid}
    return [NexusGenEmbedding(modules["merger"], image_embeds=embeds)]


INFUSE_NET = Made(
    lambda: tiny_controlnet(7, num_single_layers=0, **WIDE),
    lambda: FluxControlNetModel(num_layers=4, num_single_layers=10, guidance_embeds=True),
)
REDUX = {"embedder": Made(tiny_redux_embedder, ReduxImageEncoder)}
METHODS: dict[str, MethodStep] = {
    "entities": MethodStep("EliGen, 3 entities", _entities),
    "padding mask": MethodStep(
        f"`mask_padding`, prompt of {QUARTER.prompt} tokens", lambda modules, sizes: [], hides_padding=True
    ),
    "entities, padding mask": MethodStep("both of them", partial(_entities, mask_padding=True), hides_padding=True),
    "references": MethodStep("one reference of the image's size", _reference),
    "references, strength": MethodStep("the same, strength 0.5", partial(_reference, scale=0.5)),
    "controlnet": MethodStep(
        "ControlNet of 1 + 0 blocks; released: Union-Pro",
        lambda modules, sizes: [ControlNetImage(modules["controlnet"], picture())],
        {
            "controlnet": Made(
                lambda: tiny_controlnet(5, num_single_layers=0, **WIDE),
                lambda: FluxControlNetModel(num_layers=5, num_single_layers=10, guidance_embeds=True),
            )
        },
    ),
    "identity": MethodStep(
        "InfiniteYou, InfuseNet of 1 + 0 blocks",
        _identity,
        {
            "controlnet": INFUSE_NET,
            "projector": Made(lambda: tiny_projector(num_queries=2), InfiniteYouImageProjector),
        },
    ),
    "ip-adapter": MethodStep(
        "InstantX' IP-Adapter, one image",
        lambda modules, sizes: [IPAdapterImages(modules["adapter"], image_embeds=_normal(1, sizes.siglip))],
        {"adapter": Made(_adapter(3, num_tokens=32), FluxIPAdapter)},
    ),
    "ip-adapter xlabs": MethodStep(
        "XLabs' IP-Adapter, one image",
        lambda modules, sizes: [IPAdapterImages(modules["adapter"], image_embeds=_normal(1, sizes.clip))],
        {"adapter": Made(_adapter(1, **XLABS), _xlabs)},
    ),
    "attributes": MethodStep(
        "AttriCtrl, one value",
        lambda modules, sizes: [AttributeValues(modules["encoder"], {"brightness": 0.7})],
        {"encoder": Made(lambda: tiny_value_encoder(num_tokens=8), AttributeValueEncoder)},
    ),
    "lora embedding": MethodStep(
        "LoRA-Encoder, one LoRA",
        lambda modules, sizes: [LoRAEmbedding(modules["encoder"], lora_for(modules["encoder"]))],
        {"encoder": Made(lambda: tiny_lora_encoder(num_special_embeds=1), FluxLoRAEncoder)},
    ),
    "redux": MethodStep("Redux, one image", _redux, REDUX),
    "redux, half": MethodStep("the same, strength 0.5", partial(_redux, scale=0.5), REDUX),
    "redux, masked": MethodStep("the same, masked", partial(_redux, region=LEFT), REDUX),
    "insert-anything": MethodStep(
        "Insert-Anything: Fill and Redux, without its LoRA",
        lambda modules, sizes: [FillMask(picture(), LEFT), *_redux(modules, sizes)],
        REDUX,
        channels=320,
    ),
    "step1x": MethodStep("Step1X-Edit, without CFG", _step1x, {"connector": Made(tiny_connector, Step1XConnector)}),
    "nexus-gen": MethodStep("Nexus-Gen, drawing", _nexus_gen, {"adapter": Made(tiny_adapter, NexusGenAdapter)}),
    "nexus-gen, edit": MethodStep(
        "Nexus-Gen, editing", _nexus_gen_edit, {"merger": Made(tiny_merger, NexusGenEditingMerger)}
    ),
    "fill": MethodStep("FLUX.1 Fill", lambda modules, sizes: [FillMask(picture(), LEFT)], channels=320),
    "flex": MethodStep(
        "Flex.2, inpainting and control",
        lambda modules, sizes: [FlexControl(picture(), LEFT, picture(1))],
        channels=132,
    ),
    "inpaint": MethodStep("`InpaintRegion`", lambda modules, sizes: [InpaintRegion(picture(), LEFT)]),
}


def make_step(
    pipe: Any, conditions: Sequence[FluxCondition], sizes: StepSizes, hides_padding: bool = False
) -> tuple[Callable[[], torch.Tensor], int]:
    """Encode conditions and return a function that runs one step with them, and the tokens that they add.

    Args:
        pipe (`FluxConditionedPipeline`): Its models are all on one device; the transformer takes all channels.
        conditions (`Sequence[FluxCondition]`): The conditions.
        sizes (`StepSizes`): Sizes of the image and the prompt.
        hides_padding (`bool`, defaults to `False`): Whether the prompt's padding is hidden.

    Returns:
        `tuple[Callable, int]`
    """
    transformer, pixels, length = pipe.transformer, 16 * sizes.side, sizes.text
    weight, config = next(transformer.parameters()), transformer.config
    noise = torch.randn(1, sizes.side**2, 64, generator=seeded()).to(weight)
    canvas = Canvas(pixels, pixels, 1, 1, weight.device, weight.dtype, max_sequence_length=length, noise=noise)
    encoded = EncodedConditions(pipe, conditions, canvas)
    prompt = PromptEmbeds(
        torch.randn(1, length, config.joint_attention_dim, generator=seeded(1)).to(weight),
        torch.randn(1, config.pooled_projection_dim, generator=seeded(2)).to(weight),
        torch.zeros(length, 3, device=weight.device),
        torch.arange(length)[None] < sizes.prompt if hides_padding else None,
    )
    axis = torch.arange(sizes.side, device=weight.device).float()
    ids = torch.cartesian_prod(axis.new_zeros(1), axis, axis)
    timestep, guidance, following = (torch.tensor([value]).to(weight) for value in (0.9, 3.5, 0.8))
    plain, cache = DenoisingStep(1, 4, "cond", timestep, noise, ids, prompt, guidance, following), PlanCache()

    def run() -> torch.Tensor:
        with regional_attention(transformer):
            step = encoded.with_prompt(plain)
            velocity = predict_velocity(transformer, step, encoded.contributions(step), cache)
        return encoded.after_step(step, velocity)

    step = encoded.with_prompt(plain)
    added = sum(group.length for part in encoded.contributions(step) for group in (*part.text, *part.reference))
    return run, added + step.prompt.hidden_states.shape[1] - length
