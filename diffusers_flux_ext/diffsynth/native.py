"""The pipeline of this package behind the translation, with every module that a method may need."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from transformers import PreTrainedModel, SiglipVisionModel

from .._devices import execution_device
from ..canvas import Canvas, encode_image, pack_latents
from ..inputs.images import read_pixels
from ..methods.attribute_control.encoder import AttributeValueEncoder
from ..methods.infinite_you.projector import InfiniteYouImageProjector
from ..methods.ip_adapter.model import FluxIPAdapter
from ..methods.lora_encoder.model import FluxLoRAEncoder
from ..methods.nexus_gen.adapter import NexusGenAdapter
from ..methods.nexus_gen.merger import NexusGenEditingMerger
from ..methods.step1x_edit.connector import Step1XConnector
from ..pipeline.call_inputs import PromptInputs
from ..pipeline.components import extends_init
from ..pipeline.conditioned import FluxConditionedPipeline


class TruncatingImageProcessor(VaeImageProcessor):
    """Cuts pixels off to 8 bits, in the data type of the VAE, where diffusers rounds them in float32."""

    def postprocess(self, image: torch.Tensor, output_type: str = "pil", do_denormalize: Any = None) -> Any:
        """See [`~diffusers.image_processor.VaeImageProcessor.postprocess`]."""
        if output_type != "pil":
            return super().postprocess(image, output_type, do_denormalize)
        pixels = ((image + 1) * (255 / 2)).clip(0, 255).to(device="cpu", dtype=torch.uint8)
        return [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]


class TranslatedPipeline(FluxConditionedPipeline):
    """A `FluxConditionedPipeline` that decides as DiffSynth-Studio where the two differ.

    Guidance is on at every scale but 1; `latents` are the noise, which is mixed with `image` where there is one.

    Args:
        controlnet, ip_adapter, redux_encoder, image_embedder, connector, mllm, generation_adapter, editing_adapter, \
value_encoder, image_projector, lora_encoder (`torch.nn.Module`, *optional*):
            The modules of methods, so that devices and VRAM budgets cover them. All others are those of the base
            class, and may be `None`.
    """

    _loop_components = ("transformer", "controlnet", "connector")
    _optional_components = [
        *FluxConditionedPipeline._optional_components,
        *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae", "transformer"),
        *("controlnet", "ip_adapter", "redux_encoder", "image_embedder", "connector", "mllm"),
        *("generation_adapter", "editing_adapter", "value_encoder", "image_projector", "lora_encoder"),
    ]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        controlnet: FluxMultiControlNetModel = None,
        ip_adapter: FluxIPAdapter | None = None,
        redux_encoder: SiglipVisionModel = None,
        image_embedder: ReduxImageEncoder = None,
        connector: Step1XConnector | None = None,
        mllm: PreTrainedModel = None,
        generation_adapter: NexusGenAdapter | None = None,
        editing_adapter: NexusGenEditingMerger | None = None,
        value_encoder: AttributeValueEncoder | None = None,
        image_projector: InfiniteYouImageProjector | None = None,
        lora_encoder: FluxLoRAEncoder | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(
            controlnet=controlnet,
            ip_adapter=ip_adapter,
            redux_encoder=redux_encoder,
            image_embedder=image_embedder,
            connector=connector,
            mllm=mllm,
            generation_adapter=generation_adapter,
            editing_adapter=editing_adapter,
            value_encoder=value_encoder,
            image_projector=image_projector,
            lora_encoder=lora_encoder,
        )
        channels = self.vae.config.latent_channels if self.vae is not None else 16
        self.image_processor = TruncatingImageProcessor(
            vae_scale_factor=self.vae_scale_factor * 2, vae_latent_channels=channels
        )

    @staticmethod
    def _is_guided(true_cfg_scale: float, negative: PromptInputs) -> bool:
        return true_cfg_scale != 1

    def _starting_latents(
        self, image: Any, latents: torch.Tensor | None, timestep: torch.Tensor, canvas: Canvas, generator: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        noise, ids, _ = super()._starting_latents(None, latents, timestep, canvas, generator)
        if image is None:
            return noise, ids, noise
        pixels = read_pixels("`input_image`", image, self.image_processor, canvas.height, canvas.width)
        encoded = pack_latents(encode_image(self.vae, pixels.to(execution_device(self.vae), self.vae.dtype)))
        mixed = self.scheduler.scale_noise(encoded.to(noise), timestep.repeat(noise.shape[0]), noise)
        return mixed, ids, noise
