"""The composable pipeline: from a prompt and conditions to images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.image_processor import PipelineImageInput
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
    T5TokenizerFast,
)

from .._compat import offload_all_but
from .._devices import ExecutionDeviceMixin, execution_device
from ..caches.rules import check_caches
from ..canvas import Canvas
from ..condition import FluxCondition, check_conditions
from ..demand import Demand
from ..denoise import PromptEmbeds
from ..encoded import EncodedConditions
from ..inputs.checks import check_generators
from ..inputs.images import read_images
from ..inputs.text import check_text_length, encode_text, encoding_texts
from ..lora.loading.mixin import FluxExtLoraLoaderMixin
from ..models.autoencoder_kl_flux import AutoencoderKLFlux
from ..models.transformer_flux_ext import FluxExtTransformer2DModel
from ..offload.budget.apply import VRAMBudgetMixin
from ..parallel.budgets import share_tiles
from ..parallel.enable import ParallelMixin
from .call_checks import check_arguments, check_storage
from .call_inputs import (
    PromptInputs,
    canvas_size,
    check_prompts,
    count_prompts,
    image_processor_of,
    ip_adapter_kwargs,
    is_guided,
    set_timesteps,
    starting_latents,
    warn_of_long_texts,
)
from .components import share_components
from .concurrent import may_run_at_once
from .loop import DenoisingLoopMixin
from .single_file import SingleFilePipelineMixin


PipelineT = TypeVar("PipelineT", bound=DiffusionPipeline)


class FluxConditionedPipeline(
    SingleFilePipelineMixin,
    FluxExtLoraLoaderMixin,
    VRAMBudgetMixin,
    ParallelMixin,
    DenoisingLoopMixin,
    ExecutionDeviceMixin,
    FluxPipeline,
):
    r"""FLUX.1 with any set of conditions in one denoising loop.

    Without conditions it computes what [`~diffusers.FluxPipeline`] computes, and with `image` what
    [`~diffusers.FluxImg2ImgPipeline`] computes, bit for bit. Its components are those of `FluxPipeline`, so it loads
    from any FLUX.1 repository and shares components with diffusers' own pipelines through [`from_pipe`].

    Args:
        scheduler ([`~diffusers.FlowMatchEulerDiscreteScheduler`] or [`FluxFlowMatchScheduler`]): The scheduler.
        vae ([`~diffusers.AutoencoderKL`] or [`AutoencoderKLFlux`]): The VAE.
        text_encoder (`CLIPTextModel`): Gives the pooled prompt.
        tokenizer (`CLIPTokenizer`): Its tokenizer.
        text_encoder_2 (`T5EncoderModel`): Gives the prompt's hidden states.
        tokenizer_2 (`T5TokenizerFast`): Its tokenizer.
        transformer ([`~diffusers.FluxTransformer2DModel`] or [`FluxExtTransformer2DModel`]): The transformer.
        image_encoder (`CLIPVisionModelWithProjection` or `SiglipVisionModel`, *optional*):
            For [`IPAdapterImages`] without an encoder of their own; diffusers' own IP-Adapter needs the former.
        feature_extractor (`CLIPImageProcessor` or `SiglipImageProcessor`, *optional*): Its processor.
    """

    _loop_components: tuple[str, ...] = ("transformer",)
    # What a translation of another library's pipeline decides differently.
    _is_guided = staticmethod(is_guided)
    _starting_latents = starting_latents

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | AutoencoderKLFlux,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel | FluxExtTransformer2DModel,
        image_encoder: CLIPVisionModelWithProjection | SiglipVisionModel = None,
        feature_extractor: CLIPImageProcessor | SiglipImageProcessor = None,
    ) -> None:
        super().__init__(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        self.image_processor = image_processor_of(self)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """Make this pipeline from the components of another one, which stays as it is.

        Unlike diffusers' own `from_pipe`, nothing is cast unless `dtype` is given.

        Args:
            pipeline (`DiffusionPipeline`): A FLUX.1 pipeline of diffusers or of this package.
            kwargs: Components that replace the source's or that it lacks; with `dtype` or `custom_pipeline` the call
                goes to diffusers.

        Returns:
            `FluxConditionedPipeline`
        """
        if {"dtype", "torch_dtype", "custom_pipeline"} & kwargs.keys():
            return super().from_pipe(pipeline, **kwargs)
        return share_components(cls, pipeline, **kwargs)

    def to_pipeline(self, pipeline_class: type[PipelineT], **kwargs: Any) -> PipelineT:
        """Make another pipeline with this one's components, for example `pipe.to_pipeline(FluxImg2ImgPipeline)`.

        The same as `pipeline_class.from_pipe(pipe)` except that every module keeps its data type: diffusers' own
        `from_pipe` casts the shared modules to float32 unless it is given `dtype`.

        Args:
            pipeline_class (`type`): The class to make.
            kwargs: Components that it needs besides.

        Returns:
            `DiffusionPipeline`: an instance of `pipeline_class`.
        """
        return share_components(pipeline_class, self, **kwargs)

    def demand(self, prompt_tokens: int) -> Demand:
        """Return the demand of a call without conditions, for VRAM plans; a named pipeline adds its own condition.

        Args:
            prompt_tokens (`int`): Text tokens of the prompt.

        Returns:
            `Demand`: nothing here.
        """
        return Demand()

    def encode_text(
        self, texts: list[str], length: int, canvas: Canvas, mask_padding: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode texts of conditions with T5; see [`~inputs.text.encode_text`].

        Args:
            texts (`list[str]`): The texts.
            length (`int`): Tokens of each text; what does not fit is cut off with a warning.
            canvas (`Canvas`): Gives device and data type.
            mask_padding (`bool`, *optional*, defaults to `False`): Whether to hide padding.

        Returns:
            `tuple[torch.Tensor, torch.Tensor or None]`: hidden states `(len(texts), length, 4096)`, and if padding is
            hidden, the mask of the other tokens: `(len(texts), length)`, boolean.

        Raises:
            ValueError: if the pipeline has no T5.
        """
        return encode_text(self, texts, length, canvas, mask_padding)

    @torch.no_grad()
    @may_run_at_once
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        true_cfg_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 28,
        sigmas: list[float] | None = None,
        guidance_scale: float = 3.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        negative_ip_adapter_image: PipelineImageInput | None = None,
        negative_ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        joint_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
        image: PipelineImageInput | None = None,
        strength: float = 0.6,
        conditions: Sequence[FluxCondition] | None = None,
        mask_padding: bool = False,
        prompt_embeds_mask: torch.Tensor | None = None,
        negative_prompt_embeds_mask: torch.Tensor | None = None,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images.

        All arguments of [`~diffusers.FluxPipeline.__call__`] mean what they mean there, but `callback_on_step_end` may
        return `None` where it changes nothing. In addition:

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Start from this image (image-to-image) instead of from noise; one for all prompts or one each. A
                tensor with 16 channels is taken as scaled VAE latents.
            strength (`float`, *optional*, defaults to 0.6):
                How much of `image` is redrawn, in [0, 1]. Read only together with `image`. With a scheduler on
                DiffSynth's grid it lowers the starting noise and keeps the number of steps.
            conditions (`Sequence[FluxCondition]`, *optional*):
                What else to condition on, for example `[EntityRegions(...), InpaintRegion(...)]`. Any set runs
                together, or is refused with an error that names both sides.
            mask_padding (`bool`, *optional*, defaults to `False`):
                Whether to mask the prompt's padding tokens. FLUX.1 was trained without such a mask; this is for models
                tuned with one. `max_sequence_length` then affects only the cost.
            prompt_embeds_mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*):
                1 for tokens of `prompt_embeds`, 0 for padding; needed with `mask_padding` and embeddings.
            negative_prompt_embeds_mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*):
                The same for `negative_prompt_embeds`.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`: the images, as `output_type` says.

        Raises:
            ValueError: if arguments contradict each other or do not fit the model; before the first step.
            TypeError: if an argument has a wrong type, or `conditions` holds anything but conditions.
            RuntimeError: if another call runs with modules that serve one call at a time; see `docs/reliability.md`.
        """
        check_arguments(locals())
        conditions = check_conditions(conditions)
        height, width = canvas_size(self, height, width)
        tensor_inputs = callback_on_step_end_tensor_inputs or ()
        given = PromptInputs(prompt, prompt_2, prompt_embeds, pooled_prompt_embeds, prompt_embeds_mask)
        negative = PromptInputs(
            negative_prompt, negative_prompt_2, negative_prompt_embeds, negative_pooled_prompt_embeds,
            negative_prompt_embeds_mask,
        )  # fmt: skip
        self.check_inputs(
            height=height,
            width=width,
            **given.named(),
            **negative.named("negative_"),
            callback_on_step_end_tensor_inputs=tensor_inputs,
            max_sequence_length=max_sequence_length,
        )
        batch_size = count_prompts(prompt, prompt_embeds)
        given, negative = given.matching(batch_size), negative.matching(batch_size, "negative_")
        guided = self._is_guided(true_cfg_scale, negative)
        check_prompts(self, given, negative, batch_size, mask_padding, guided)
        warn_of_long_texts(self, given, max_sequence_length)
        if generator is not None:
            check_generators("`generator`", generator, batch_size * num_images_per_prompt)
            generator = list(generator) if isinstance(generator, tuple) else generator
        if image is not None:
            read_images("`image` of the call", image, self.image_processor.config.vae_latent_channels)
        self._begin(guidance_scale, joint_attention_kwargs)

        # Asking for the device walks through modules.
        device = self._execution_device
        check_caches(self.transformer, guided)
        check_storage(self.transformer)
        settings = (device, num_images_per_prompt, max_sequence_length, mask_padding)
        cond, uncond = self._encode(given, *settings), None
        if guided:
            uncond = self._encode(negative, *settings)

        canvas = Canvas(
            height=height,
            width=width,
            batch_size=batch_size,
            num_images_per_prompt=num_images_per_prompt,
            device=device,
            dtype=cond.hidden_states.dtype,
            token_size=2 * self.vae_scale_factor,
            max_sequence_length=max_sequence_length,
            mask_padding=mask_padding,
            guided=guided,
        )
        timesteps = set_timesteps(self, num_inference_steps, sigmas, None if image is None else strength, canvas)
        self._num_timesteps = len(timesteps)
        latents, latent_ids, noise = self._starting_latents(image, latents, timesteps[0], canvas, generator)
        canvas = replace(canvas, noise=noise)
        adapter_kwargs = ip_adapter_kwargs(
            self,
            (ip_adapter_image, negative_ip_adapter_image),
            (ip_adapter_image_embeds, negative_ip_adapter_image_embeds),
            canvas,
            guided=uncond is not None,
        )
        encoded = EncodedConditions(self, conditions, canvas)
        offload_all_but(self, self._loop_components)
        latents = self.denoise(
            latents, latent_ids, timesteps, cond, uncond, encoded, adapter_kwargs, true_cfg_scale,
            callback_on_step_end, tensor_inputs,
        )  # fmt: skip

        images = latents
        if output_type != "latent":
            share_tiles(self.transformer)
            images = encoded.after_decode(self.decode_latents(latents, height, width))
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=images) if return_dict else (images,)

    def _begin(self, guidance_scale: float, joint_attention_kwargs: dict[str, Any] | None) -> None:
        self._guidance_scale = guidance_scale
        self._joint_attention_kwargs = dict(joint_attention_kwargs or {})
        self._current_timestep, self._interrupt = None, False

    def _encode(
        self, given: PromptInputs, device: torch.device, num_images_per_prompt: int, max_sequence_length: int,
        mask_padding: bool,
    ) -> PromptEmbeds:  # fmt: skip
        prompt_embeds, pooled_prompt_embeds = given.repeated_embeds(num_images_per_prompt)
        with encoding_texts(self, mask_padding and prompt_embeds is None) as masks:
            encoded = self.encode_prompt(
                given.prompt,
                given.prompt_2,
                device=device,
                num_images_per_prompt=num_images_per_prompt,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                max_sequence_length=max_sequence_length,
                lora_scale=self._joint_attention_kwargs.get("scale"),
            )
        if prompt_embeds is None:
            check_text_length(encoded[0], max_sequence_length)
        mask = masks[0] if masks else given.mask
        if mask is not None:
            mask = mask.bool().cpu().repeat_interleave(num_images_per_prompt if len(mask) > 1 else 1, dim=0)
        return replace(PromptEmbeds(*encoded), mask=mask)

    def decode_latents(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode packed latents.

        Args:
            latents (`torch.Tensor` of shape `(batch_size, num_tokens, 64)`): Packed latents.
            height (`int`): Pixels.
            width (`int`): Pixels.

        Returns:
            `torch.Tensor` of shape `(batch_size, 3, height, width)` in [-1, 1].
        """
        latents = self._unpack_latents(latents, height, width, self.vae_scale_factor)
        latents = (latents / self.vae.config.scaling_factor) + self.vae.config.shift_factor
        return self.vae.decode(latents.to(execution_device(self.vae)), return_dict=False)[0]
