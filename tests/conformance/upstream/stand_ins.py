"""Pipelines with the calls of diffusers' FLUX.1 pipelines that run `FluxConditionedPipeline` and its conditions."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from diffusers_flux_ext import (
    ControlNetImage,
    FillMask,
    FluxCondition,
    FluxConditionedPipeline,
    InpaintRegion,
    ReferenceImages,
)
from diffusers_flux_ext.canvas import Canvas, encode_image, pack_latents
from diffusers_flux_ext.denoise import DenoisingStep
from diffusers_flux_ext.inputs.images import read_pixels
from diffusers_flux_ext.sequence import Contribution


Arguments = dict[str, Any]


class StandIn(FluxConditionedPipeline):
    """Takes the arguments of a stock pipeline and calls ours with conditions."""

    stock: ClassVar[Any]

    def translate(self, arguments: Arguments) -> Arguments:
        """The arguments of `FluxConditionedPipeline` that ask for the same."""
        return arguments

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(self.stock.__call__).bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        for name in ("masked_image_latents", "padding_mask_crop"):
            if arguments.pop(name, None) is not None:
                raise NotImplementedError(f"No test has needed `{name}` so far.")
        return super().__call__(**self.translate(arguments))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.stock = getattr(diffusers, cls.__name__.removesuffix("StandIn"))

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            return StandIn.__call__(self, *args, **kwargs)

        __call__.__signature__ = inspect.signature(cls.stock.__call__)  # type: ignore[attr-defined]
        cls.__call__ = __call__  # type: ignore[method-assign]


def inpaint(arguments: Arguments) -> InpaintRegion:
    return InpaintRegion(arguments["image"], arguments.pop("mask_image"))


def with_conditions(arguments: Arguments, *conditions: FluxCondition) -> Arguments:
    return {**arguments, "conditions": [*arguments.get("conditions", ()), *conditions]}


class FluxImg2ImgPipelineStandIn(StandIn):
    pass


class FluxInpaintPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        return with_conditions(arguments, inpaint(arguments))


class FluxFillPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        image, mask, strength = (arguments.pop(name) for name in ("image", "mask_image", "strength"))
        if strength < 1:
            arguments |= {"image": image, "strength": strength}
        fill = FillMask(image, mask, paste_back=False, generator=arguments["generator"])
        return with_conditions(arguments, fill)


class FluxKontextPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        image, area = arguments.pop("image"), arguments.pop("max_area")
        if arguments["height"] and arguments["width"]:
            ratio = arguments["width"] / arguments["height"]
            cell = 2 * self.vae_scale_factor
            arguments["width"] = round((area * ratio) ** 0.5) // cell * cell
            arguments["height"] = round((area / ratio) ** 0.5) // cell * cell
        return with_conditions(arguments, ReferenceImages([image], preferred_size=arguments.pop("_auto_resize")))


class FluxKontextInpaintPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        reference = arguments.pop("image_reference")
        reference = arguments["image"] if reference is None else reference
        del arguments["max_area"]
        references = ReferenceImages([reference], preferred_size=arguments.pop("_auto_resize"))
        return with_conditions(arguments, references, inpaint(arguments))


@dataclass(frozen=True, eq=False)
class ControlChannels(FluxCondition):
    """The picture of FLUX.1 Canny and Depth as further channels: a condition of somebody else's."""

    image: Any

    def encode(self, pipe: FluxConditionedPipeline, canvas: Canvas) -> dict[str, torch.Tensor]:
        pixels = read_pixels("`image`", self.image, pipe.image_processor, canvas.height, canvas.width)
        latents = encode_image(pipe.vae, pixels.to(pipe.vae.device, pipe.vae.dtype))
        return {"channels": canvas.per_sample(pack_latents(latents).to(canvas.device, canvas.dtype))}

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        return Contribution(channels=[encoded["channels"]])


class FluxControlPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        return with_conditions(arguments, ControlChannels(arguments.pop("control_image")))


class FluxControlImg2ImgPipelineStandIn(FluxControlPipelineStandIn):
    pass


class FluxControlInpaintPipelineStandIn(StandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        return with_conditions(arguments, ControlChannels(arguments.pop("control_image")), inpaint(arguments))


class FluxControlNetPipelineStandIn(StandIn):
    model_cpu_offload_seq = "text_encoder->text_encoder_2->controlnet->transformer->vae"

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel,
        controlnet: FluxControlNetModel,
        image_encoder: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__(
            scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer, image_encoder,
            feature_extractor,
        )  # fmt: skip
        self.register_modules(controlnet=controlnet)

    def translate(self, arguments: Arguments) -> Arguments:
        image, scale, mode, start, end = (
            arguments.pop(name)
            for name in (
                "control_image", "controlnet_conditioning_scale", "control_mode", "control_guidance_start",
                "control_guidance_end",
            )
        )  # fmt: skip
        if torch.is_tensor(image) and arguments["height"] is None:
            # The stock pipeline draws as large as the control picture.
            cell = 2 * self.vae_scale_factor
            arguments["height"], arguments["width"] = (side // cell * cell for side in image.shape[-2:])
        control = ControlNetImage(self.controlnet, image, scale=scale, start=start, end=end, mode=mode)
        return with_conditions(arguments, control)


class FluxControlNetImg2ImgPipelineStandIn(FluxControlNetPipelineStandIn):
    pass


class FluxControlNetInpaintPipelineStandIn(FluxControlNetPipelineStandIn):
    def translate(self, arguments: Arguments) -> Arguments:
        region = inpaint(arguments)
        return with_conditions(super().translate(arguments), region)


STAND_INS = {
    each.stock: each
    for each in (
        FluxImg2ImgPipelineStandIn,
        FluxInpaintPipelineStandIn,
        FluxFillPipelineStandIn,
        FluxKontextPipelineStandIn,
        FluxKontextInpaintPipelineStandIn,
        FluxControlPipelineStandIn,
        FluxControlImg2ImgPipelineStandIn,
        FluxControlInpaintPipelineStandIn,
        FluxControlNetPipelineStandIn,
        FluxControlNetImg2ImgPipelineStandIn,
        FluxControlNetInpaintPipelineStandIn,
    )
}
"""Stand-ins by stock class."""
