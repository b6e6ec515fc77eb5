"""Step1X-Edit as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionModel,
    T5EncoderModel,
    T5TokenizerFast,
)

from ...condition import FluxCondition, check_conditions
from ...demand import Demand
from ...inputs.checks import read_texts
from ...inputs.images import ImageInputs
from ...inputs.numbers import read_count
from ...inputs.qwen_vl import QwenVLProcessor
from ...inputs.vision import list_images, to_pil
from ...models.autoencoder_kl_flux import AutoencoderKLFlux
from ...models.transformer_flux_ext import FluxExtTransformer2DModel
from ...pipeline.call_inputs import PromptInputs, canvas_size, is_guided
from ...pipeline.components import extends_call, named_arguments, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .condition import Step1XInstruction
from .connector import Step1XConnector
from .instructions import MAX_TOKENS, encode_instructions, step1x_size


TRUE_CFG_SCALE = 6.0
# The connector's tokens take the place of what these give.
_NOT_READ = (
    "prompt_2",
    "negative_prompt_2",
    "prompt_embeds",
    "pooled_prompt_embeds",
    "negative_prompt_embeds",
    "negative_pooled_prompt_embeds",
    "prompt_embeds_mask",
    "negative_prompt_embeds_mask",
)


class FluxStep1XEditPipeline(FluxConditionedPipeline):
    r"""Editing images by instructions, Step1X-Edit 1.0 and 1.1 ([paper](https://huggingface.co/papers/2504.17761)).

    Args:
        scheduler, vae, transformer, image_encoder, feature_extractor: As for its base class.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2 (*optional*):
            As for its base class; only conditions read them, [`EntityRegions`] for example.
        mllm (`Qwen2_5_VLForConditionalGeneration`, *optional*):
            Qwen2.5-VL 7B, which reads image and instruction before the loop; encoded instructions do without it.
        mllm_processor ([`QwenVLProcessor`], *optional*): Its processor.
        connector ([`Step1XConnector`], *optional*): Makes the transformer's prompt of its hidden states.

    Example:
    ```py
    >>> import torch
    >>> from diffusers.utils import load_image
    >>> from transformers import Qwen2_5_VLForConditionalGeneration
    >>> from diffusers_flux_ext import (
    ...     FluxExtTransformer2DModel,
    ...     FluxStep1XEditPipeline,
    ...     QwenVLProcessor,
    ...     Step1XConnector,
    ... )

    >>> file, qwen = "step1x-edit-v1p1-official.safetensors", "Qwen/Qwen2.5-VL-7B-Instruct"
    >>> pipe = FluxStep1XEditPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-dev",
    ...     transformer=FluxExtTransformer2DModel.from_single_file(file, torch_dtype=torch.bfloat16),
    ...     connector=Step1XConnector.from_single_file(file, torch_dtype=torch.bfloat16),
    ...     mllm=Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen, dtype=torch.bfloat16),
    ...     mllm_processor=QwenVLProcessor.from_pretrained(qwen),
    ...     text_encoder=None,
    ...     text_encoder_2=None,
    ...     tokenizer=None,
    ...     tokenizer_2=None,
    ...     torch_dtype=torch.bfloat16,
    ... )
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe("add a red hat", image=load_image("her.png"), rescale_above=0.93).images[0]
    ```
    """

    # The connector runs at every step, so it stays beside the transformer instead of taking turns with it.
    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->mllm->transformer->vae"
    _loop_components = ("transformer", "connector")
    _optional_components = [
        *FluxConditionedPipeline._optional_components,
        "text_encoder",
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "mllm",
        "mllm_processor",
        "connector",
    ]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | AutoencoderKLFlux,
        transformer: FluxTransformer2DModel | FluxExtTransformer2DModel,
        text_encoder: CLIPTextModel = None,
        tokenizer: CLIPTokenizer = None,
        text_encoder_2: T5EncoderModel = None,
        tokenizer_2: T5TokenizerFast = None,
        image_encoder: CLIPVisionModelWithProjection | SiglipVisionModel = None,
        feature_extractor: CLIPImageProcessor | SiglipImageProcessor = None,
        mllm: Qwen2_5_VLForConditionalGeneration = None,
        mllm_processor: QwenVLProcessor = None,  # type: ignore[assignment]
        connector: Step1XConnector = None,  # type: ignore[assignment]
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
        self.register_modules(mllm=mllm, mllm_processor=mllm_processor, connector=connector)

    def demand(self, prompt_tokens: int) -> Demand:
        """Return the longest instruction in the prompt's place, and the image as a reference."""
        return Demand(prompt_tokens=MAX_TOKENS, canvases=1)

    @torch.no_grad()
    def encode_instruction(
        self,
        prompt: str | Sequence[str],
        image: Any,
        height: int | None = None,
        width: int | None = None,
        size_level: int = 1024,
        cut_at_apostrophes: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode instructions with the language model.

        The result can be saved and passed as `instruction_embeds` and `instruction_mask`, also to a pipeline without
        the language model.

        Args:
            prompt (`str` or `Sequence[str]`): What to do, or one for each image; `""` for the negative side.
            image (*optional*): The images, as for the call.
            height, width, size_level, cut_at_apostrophes: As for the call.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: hidden states `(count, 640, 3584)` and their mask `(count, 640)`.

        Raises:
            ValueError: if the pipeline has no language model, there is no image, or the numbers do not fit.
        """
        if self.mllm is None or self.mllm_processor is None:
            raise ValueError("The pipeline has no `mllm` or no `mllm_processor` to encode an instruction with.")
        height, width = canvas_size(self, *self._size(image, height, width, size_level))
        images = [to_pil(each).resize((width, height), Image.Resampling.LANCZOS) for each in list_images(image)]
        texts = read_texts("`prompt`", prompt)
        encoded = encode_instructions(self.mllm, self.mllm_processor, texts, images, cut_at_apostrophes)
        self.maybe_free_model_hooks()
        return encoded

    @extends_call(FluxConditionedPipeline, true_cfg_scale=TRUE_CFG_SCALE)
    @renames_errors("the call", image="init_image")
    @renames_errors(Step1XInstruction, image="image", instruction="prompt", negative_instruction="negative_prompt")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        size_level: int = 1024,
        init_image: ImageInputs | None = None,
        cut_at_apostrophes: bool = True,
        rescale_above: float | None = None,
        rescale_power: float = 0.4,
        instruction_embeds: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
        negative_instruction_embeds: torch.Tensor | None = None,
        negative_instruction_mask: torch.Tensor | None = None,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Edit images.

        Args:
            args, kwargs:
                As for [`FluxConditionedPipeline.__call__`], but `prompt` is the instruction, `negative_prompt` what
                the unconditional branch is told (`""` by default), `image` the image to edit or one per prompt, and
                `true_cfg_scale` is 6 by default; at 1 and below nothing negative is encoded or computed. What only the
                text encoders read (`prompt_2`, `prompt_embeds`, ...) is refused.
            size_level (`int`, *optional*, defaults to 1024):
                Without `height` and `width` the first image's aspect is kept at about the area of a square of this
                side; 512, 768 and 1024 are published. With both, images are stretched to them.
            init_image (*optional*):
                Start from this image instead of from noise, as `image` does in the base class, with `strength`.
            cut_at_apostrophes, rescale_above, rescale_power: See [`Step1XInstruction`].
            instruction_embeds, instruction_mask, negative_instruction_embeds, negative_instruction_mask:
                Encoded instructions in place of `prompt` and `negative_prompt`, see [`encode_instruction`].
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if there is no image, instruction or connector, or an argument has no effect.
        """
        given = named_arguments(FluxConditionedPipeline, args, kwargs)
        useless = [name for name in _NOT_READ if given.get(name) is not None]
        if useless:
            raise ValueError(f"Step1X-Edit does not read {useless}: its prompt comes from the language model.")
        if self.connector is None:
            raise ValueError("The pipeline has no `connector`. Pass a `Step1XConnector` to it, or to `from_pipe`.")
        image, negative = given.pop("image", None), given.pop("negative_prompt", None)
        condition = Step1XInstruction(
            self.connector,
            image,
            given.pop("prompt", None),
            "" if negative is None else negative,
            cut_at_apostrophes,
            rescale_above,
            rescale_power,
            instruction_embeds,
            instruction_mask,
            negative_instruction_embeds,
            negative_instruction_mask,
        )
        height, width = self._size(image, given.get("height"), given.get("width"), size_level)
        scale = given.setdefault("true_cfg_scale", TRUE_CFG_SCALE)
        if scale <= 1:
            # The base call never sees this negative prompt, and would not warn.
            is_guided(scale, PromptInputs(negative, None, negative_instruction_embeds, None, None))
        given |= self._empty_prompts(condition, scale > 1, bool(given.get("mask_padding")))
        given |= {"height": height, "width": width, "image": init_image}
        return super().__call__(conditions=[condition, *check_conditions(conditions)], **given)

    def _size(self, image: Any, height: int | None, width: int | None, size_level: int) -> tuple[int, int]:
        images = list_images(image)
        size_level = read_count("`size_level`, a number of pixels such as 512, 768 or 1024,", size_level, 1, 16384)
        fitted = step1x_size(*to_pil(images[0]).size, size_level, 2 * self.vae_scale_factor)
        return height or fitted[1], width or fitted[0]

    def _empty_prompts(self, condition: Step1XInstruction, guided: bool, masked: bool) -> dict[str, torch.Tensor]:
        """Return stand-ins for the text encoders' prompts, which the condition replaces."""
        if condition.instruction_embeds is not None:
            count = condition.instruction_embeds.shape[0]
        else:
            count = len(read_texts("`prompt`", condition.instruction))
        count = max(count, len(list_images(condition.image)))
        config, like = self.transformer.config, {"device": self._execution_device, "dtype": self.connector.dtype}
        tokens = torch.zeros(count, 1, config.joint_attention_dim, **like)
        pooled = torch.zeros(count, config.pooled_projection_dim, **like)
        empty = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
        empty |= {"prompt_embeds_mask": torch.ones(count, 1, dtype=torch.bool)} if masked else {}
        negative = {f"negative_{name}": tensor for name, tensor in empty.items()}
        return {**empty, **negative} if guided else empty
