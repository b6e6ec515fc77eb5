"""From the arguments of DiffSynth-Studio's call to conditions: one row per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.utils import logging
from PIL import Image

from ..condition import FluxCondition
from ..inputs.images import read_image
from ..methods.attribute_control.condition import AttributeValues
from ..methods.eligen.condition import EntityRegions
from ..methods.fill.condition import FillMask
from ..methods.flex.condition import FlexControl
from ..methods.inpaint.condition import InpaintRegion
from ..methods.ip_adapter.condition import IPAdapterImages
from ..methods.lora_encoder.condition import LoRAEmbedding
from ..methods.nexus_gen.condition import NexusGenEmbedding
from ..methods.nexus_gen.language_model import NexusGenModel
from ..methods.redux.condition import ReduxImages
from ..methods.references.condition import ReferenceImages
from ..methods.step1x_edit.condition import Step1XInstruction
from .blank_fill import BlankFill
from .controls import listed, residual_conditions
from .loras import lora_source
from .model_config import ModelConfig


logger = logging.get_logger(__name__)

FLEX_CHANNELS, FILL_CHANNELS = 196, 384
Given = Mapping[str, Any]
"""The arguments of a call by name."""


@dataclass(frozen=True)
class MethodArguments:
    """How the arguments of one method become conditions.

    Attributes:
        given (`tuple[str, ...]`): Arguments that ask for the method, all of them together.
        extra (`Mapping[str, Any]`): Further arguments and the values that ask for nothing.
        needs (`tuple[str, ...]`): Components of the pipeline that it takes.
        files (`str`): The files that give them.
        build (`Callable`): Makes the conditions.
        always (`Callable`, *optional*): Whether the pipeline has the method without being asked.
    """

    given: tuple[str, ...]
    build: Callable[[Any, Given], list[FluxCondition]]
    extra: Mapping[str, Any] | None = None
    needs: tuple[str, ...] = ()
    files: str = ""
    always: Callable[[Any], bool] | None = None


def _references(pipe: Any, call: Given) -> list[FluxCondition]:
    return [ReferenceImages(listed(call["kontext_images"]), layout="same", preferred_size=False)]


def _controlnets(pipe: Any, call: Given) -> list[FluxCondition]:
    return residual_conditions(pipe, call)


def _identity(pipe: Any, call: Given) -> list[FluxCondition]:
    if call["controlnet_inputs"] is None:
        raise ValueError("`infinityou_id_image` acts by a ControlNet: give `controlnet_inputs` for InfuseNet, too.")
    return []


def _ip_adapter(pipe: Any, call: Given) -> list[FluxCondition]:
    images, scale = listed(call["ipadapter_images"]), call["ipadapter_scale"]
    return [IPAdapterImages(pipe.ip_adapter, images, scale, image_encoder=pipe.image_encoder)]


def _entities(pipe: Any, call: Given) -> list[FluxCondition]:
    prompts, masks = (call[f"eligen_entity_{name}"] for name in ("prompts", "masks"))
    conditions: list[FluxCondition] = [EntityRegions(prompts, masks, call["eligen_enable_on_negative"])]
    if call["eligen_enable_inpaint"]:
        if call["input_image"] is None:
            raise ValueError(
                "`eligen_enable_inpaint` redraws the entities' regions of `input_image`, which is missing."
            )
        conditions.append(InpaintRegion(call["input_image"], _union(masks)))
    return conditions


def _union(masks: list[Image.Image]) -> Image.Image:
    size = max((mask.size for mask in masks), key=lambda each: each[0] * each[1])
    union = Image.new("L", size)
    for mask in masks:
        grey = read_image("`eligen_entity_masks`", mask).convert("L").resize(size, Image.Resampling.NEAREST)
        union.paste(255, mask=grey.point([0] * 128 + [255] * 128))
    return union


def _flex(pipe: Any, call: Given) -> list[FluxCondition]:
    stop = call["flex_control_stop"]
    return [
        FlexControl(
            call["flex_inpaint_image"],
            call["flex_inpaint_mask"],
            call["flex_control_image"],
            call["flex_control_strength"],
            1.0 if stop is None else stop,
        )
    ]


def _values(pipe: Any, call: Given) -> list[FluxCondition]:
    values, names = listed(call["value_controller_inputs"]), list(pipe.value_encoder.config.attributes)
    if len(values) > len(names):
        raise ValueError(
            f"`value_controller_inputs` has {len(values)} values, but {len(names)} encoders are loaded: {names}. "
            f"DiffSynth-Studio drops the rest without a word."
        )
    return [AttributeValues(pipe.value_encoder, dict(zip(names, values)), negative="same")]


def _step1x(pipe: Any, call: Given) -> list[FluxCondition]:
    return [
        Step1XInstruction(
            pipe.connector,
            call["step1x_reference_image"],
            call["prompt"],
            call["negative_prompt"],
            mllm=pipe.mllm,
            mllm_processor=call["processor"],
        )
    ]


def _nexus(pipe: Any, call: Given) -> list[FluxCondition]:
    image = call["nexus_gen_reference_image"]
    name, file = ("generation_adapter", "generation") if image is None else ("editing_adapter", "edit")
    if getattr(pipe, name) is None:
        raise ValueError(
            f"Nexus-Gen {'draws' if image is None else 'edits'} with `{file}_decoder.bin`, which is not among "
            f"`model_configs`; see `nexus_gen_reference_image`."
        )
    adapter = getattr(pipe, name)
    return [NexusGenEmbedding(adapter, call["prompt"], image, mllm=pipe.mllm, mllm_processor=call["processor"])]


def _lora_embedding(pipe: Any, call: Given) -> list[FluxCondition]:
    loras: list[Any] = []
    for each in listed(call["lora_encoder_inputs"]):
        config = ModelConfig(path=each) if isinstance(each, str) else each
        loras.append(lora_source(config))
    scale = call["lora_encoder_scale"]
    return [LoRAEmbedding(pipe.lora_encoder, loras, 1.0 if scale is None else scale)]


def _redux(pipe: Any, call: Given) -> list[FluxCondition]:
    return [
        ReduxImages(
            call["flux_redux_image"],
            prompt_scale=0.0,
            pooled_scale=0.0,
            negative="same",
            image_embedder=pipe.image_embedder,
            image_encoder=pipe.redux_encoder,
        )
    ]


def _fill(pipe: Any, call: Given) -> list[FluxCondition]:
    if call["flux_fill_image"] is None:
        return [BlankFill()]
    return [FillMask(call["flux_fill_image"], call["flux_fill_mask"].convert("L"), paste_back=False)]


def _channels(number: int) -> Callable[[Any], bool]:
    return lambda pipe: pipe.transformer.config.in_channels == number


METHODS: tuple[MethodArguments, ...] = (
    MethodArguments(("kontext_images",), _references),
    MethodArguments(
        ("controlnet_inputs",), _controlnets, needs=("controlnet",), files="a ControlNet's `diffusion_pytorch_model.*`"
    ),
    MethodArguments(
        ("ipadapter_images",),
        _ip_adapter,
        {"ipadapter_scale": 1.0},
        ("ip_adapter", "image_encoder"),
        "`ip-adapter.bin` and `model.safetensors` of siglip-so400m-patch14-384",
    ),
    MethodArguments(
        ("eligen_entity_prompts", "eligen_entity_masks"),
        _entities,
        {"eligen_enable_on_negative": False, "eligen_enable_inpaint": False},
    ),
    MethodArguments(
        ("flex_inpaint_image", "flex_inpaint_mask"),
        _flex,
        {"flex_control_image": None, "flex_control_strength": 0.5, "flex_control_stop": 0.5},
        always=_channels(FLEX_CHANNELS),
    ),
    MethodArguments(
        ("value_controller_inputs",),
        _values,
        needs=("value_encoder",),
        files="`models/brightness.safetensors` or another one",
    ),
    MethodArguments(
        ("step1x_reference_image",),
        _step1x,
        needs=("connector", "mllm"),
        files="`step1x-edit-i1258.safetensors` and `model-*.safetensors` of Qwen2.5-VL-7B-Instruct",
    ),
    MethodArguments(
        ("nexus_gen_reference_image",),
        _nexus,
        needs=("mllm",),
        files="`model*.safetensors` of Nexus-GenV2",
        always=lambda pipe: isinstance(pipe.mllm, NexusGenModel),
    ),
    MethodArguments(
        ("lora_encoder_inputs",),
        _lora_embedding,
        {"lora_encoder_scale": 1.0},
        ("lora_encoder",),
        "`model.safetensors` of LoRA-Encoder-FLUX.1-Dev",
    ),
    MethodArguments(
        ("flux_redux_image",),
        _redux,
        needs=("image_embedder", "redux_encoder"),
        files="`image_embedder/*.safetensors` and `image_encoder/model.safetensors` of FLUX.1-Redux-dev",
    ),
    MethodArguments(("flux_fill_image", "flux_fill_mask"), _fill, always=_channels(FILL_CHANNELS)),
    MethodArguments(
        ("infinityou_id_image",),
        _identity,
        {"infinityou_guidance": 1.0},
        ("image_projector", "controlnet"),
        "`image_proj_model.bin` and `InfuseNetModel/*.safetensors` of InfiniteYou",
    ),
)


def conditions_of(pipe: Any, call: Given) -> list[FluxCondition]:
    """Make the conditions of a call.

    Args:
        pipe (`TranslatedPipeline`): The pipeline, which holds the modules.
        call (`Mapping[str, Any]`): The call's arguments by name, and `"processor"` and `"face_encoder"`.

    Returns:
        `list[FluxCondition]`

    Raises:
        ValueError: if a method's file is not loaded, or arguments that belong together are not.
    """
    conditions: list[FluxCondition] = []
    for method in METHODS:
        asked = [name for name in method.given if call[name] is not None]
        own = method.always is not None and method.always(pipe)
        if asked and len(asked) < len(method.given):
            missing = [name for name in method.given if name not in asked]
            raise ValueError(
                f"`{'`, `'.join(asked)}` was given without `{'`, `'.join(missing)}`, and does nothing alone."
            )
        changed = [name for name, value in (method.extra or {}).items() if call[name] != value]
        if not asked and not own:
            _without_method(method, changed)
            continue
        absent = [name for name in method.needs if getattr(pipe, name) is None]
        if absent:
            raise ValueError(f"`{method.given[0]}` needs {method.files}, which is not among `model_configs`.")
        conditions += method.build(pipe, call)
    return conditions


def _without_method(method: MethodArguments, changed: list[str]) -> None:
    if "flex_control_image" in changed:
        raise ValueError(
            "`flex_control_image` needs `Flex.2-preview.safetensors`, whose transformer takes 196 channels."
        )
    if changed:
        logger.warning(f"`{'`, `'.join(changed)}` has no effect without `{'`, `'.join(method.given)}`.")
