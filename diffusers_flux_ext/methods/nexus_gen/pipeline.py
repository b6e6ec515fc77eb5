"""Nexus-Gen V2 as a named pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils import scale_lora_layers, unscale_lora_layers

from ...condition import FluxCondition, check_conditions
from ...demand import Demand
from ...inputs.checks import check_choice, read_texts
from ...inputs.images import ImageInputs
from ...inputs.qwen_vl import QwenVLProcessor
from ...inputs.vision import list_images
from ...pipeline.components import extends_call, extends_init, named_arguments, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from .adapter import NexusGenAdapter
from .checkpoint import NexusGenDecoder
from .condition import NexusGenEmbedding, NexusGenEmbeds
from .language_model import NUM_IMAGE_TOKENS, QUESTION, NexusGenModel
from .merger import NexusGenEditingMerger
from .prompts import MAX_PIXELS, Language, check_language_model, embed_prompts


class FluxNexusGenPipeline(FluxConditionedPipeline):
    r"""Drawing, editing and describing images with Nexus-Gen V2.

    See the [paper](https://huggingface.co/papers/2504.21356) and the
    [model](https://modelscope.cn/models/DiffSynth-Studio/Nexus-GenV2). Nexus-Gen has two decoders, one to draw and one
    to edit, each a transformer with an adapter of its own. A pipeline holds the transformer of one of them;
    `from_pipe` makes a second one for the other, which shares the rest.

    Args:
        scheduler, vae, text_encoder, tokenizer: As for its base class.
        text_encoder_2, tokenizer_2 (*optional*):
            As for its base class; only negative prompts and conditions such as [`EntityRegions`] read them.
        transformer ([`~diffusers.FluxTransformer2DModel`] or [`FluxExtTransformer2DModel`]): That of the decoder.
        image_encoder, feature_extractor: As for its base class.
        mllm ([`NexusGenModel`], *optional*): The language model. Not needed with `image_embeds`.
        mllm_processor ([`QwenVLProcessor`], *optional*): Its processor.
        generation_adapter ([`NexusGenAdapter`], *optional*): Of the generation decoder.
        editing_adapter ([`NexusGenEditingMerger`], *optional*): Of the editing decoder.

    Example:
    ```py
    >>> import torch
    >>> from diffusers.utils import load_image
    >>> from diffusers_flux_ext import FluxNexusGenPipeline, NexusGenModel, QwenVLProcessor, load_nexus_gen_decoder

    >>> folder = "Nexus-GenV2"
    >>> transformer, merger = load_nexus_gen_decoder(f"{folder}/edit_decoder.bin", dtype=torch.bfloat16)
    >>> edit = FluxNexusGenPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-dev",
    ...     transformer=transformer,
    ...     editing_adapter=merger,
    ...     mllm=NexusGenModel.from_pretrained(folder, dtype=torch.bfloat16),
    ...     mllm_processor=QwenVLProcessor.from_pretrained(f"{folder}/processor"),
    ...     dtype=torch.bfloat16,
    ... )
    >>> edit.enable_model_cpu_offload()
    >>> image = edit("Add a pair of sunglasses", image=load_image("cat.png"), height=512, width=512).images[0]
    >>> answer = edit.describe(image, "What does the cat wear?")
    ```
    """

    model_cpu_offload_seq = (
        "text_encoder->text_encoder_2->image_encoder->mllm->generation_adapter->editing_adapter->transformer->vae"
    )
    _optional_components = [
        *FluxConditionedPipeline._optional_components,
        "text_encoder_2",
        "tokenizer_2",
        "mllm",
        "mllm_processor",
        "generation_adapter",
        "editing_adapter",
    ]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        mllm: NexusGenModel = None,  # type: ignore[assignment]
        mllm_processor: QwenVLProcessor = None,  # type: ignore[assignment]
        generation_adapter: NexusGenAdapter = None,  # type: ignore[assignment]
        editing_adapter: NexusGenEditingMerger = None,  # type: ignore[assignment]
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(
            mllm=mllm,
            mllm_processor=mllm_processor,
            generation_adapter=generation_adapter,
            editing_adapter=editing_adapter,
        )

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the most embeddings that may replace the prompt."""
        return Demand(prompt_tokens=NUM_IMAGE_TOKENS + MAX_PIXELS // 28**2)

    @extends_call(FluxConditionedPipeline)
    @renames_errors("the call", image="init_image")
    @renames_errors(NexusGenEmbedding, image="image", prompt="prompt")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        init_image: ImageInputs | None = None,
        image_embeds: NexusGenEmbeds | None = None,
        decoder: NexusGenDecoder | None = None,
        language: Language = "en",
        max_pixels: int = MAX_PIXELS,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate or edit images.

        Args:
            args, kwargs:
                As for [`FluxConditionedPipeline.__call__`], but `prompt` is a description or an instruction, in
                English or Chinese, and `image` the image to edit, of any size and mode, one for all or one per
                prompt; without one the pipeline draws. CLIP reads the prompt, too; `prompt_2` is refused.
            init_image (*optional*):
                Start from this image instead of from noise, as `image` does in the base class, with `strength`.
            image_embeds (`torch.Tensor` or `Mapping[str, torch.Tensor]`, *optional*):
                What [`encode_image_embeds`] gave, in place of `image` and of asking the language model.
            decoder (`"generation"` or `"editing"`, *optional*):
                Whose adapter is used: that of the editing decoder for a given image and that of the generation
                decoder otherwise. Edits that change the whole scene may be better with `"generation"`. The
                pipeline's transformer must be that decoder's.
            language (`"en"` or `"zh"`, *optional*, defaults to `"en"`):
                The language of the sentence that Nexus-Gen puts around a description; instructions have none.
            max_pixels (`int`, *optional*, defaults to 262640):
                Maximum number of pixels of `image`, which is reduced to it.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if the decoder's adapter, the prompt or the language model is missing, or arguments contradict
                each other.
        """
        given = named_arguments(FluxConditionedPipeline, args, kwargs)
        if given.get("prompt_2") is not None:
            raise ValueError("Nexus-Gen does not read `prompt_2`: its tokens take the place of T5's. Leave it out.")
        image, prompt = given.pop("image", None), given.get("prompt")
        texts = None if image_embeds is not None else self._texts(prompt)
        edits = image is not None or (isinstance(image_embeds, Mapping) and "reference_embeds" in image_embeds)
        adapter = self._adapter(("editing" if edits else "generation") if decoder is None else decoder)
        condition = NexusGenEmbedding(adapter, texts, image, image_embeds, language=language, max_pixels=max_pixels)
        if self.text_encoder_2 is None and prompt is not None:
            given |= self._pooled_prompt(given)
        return super().__call__(image=init_image, conditions=[condition, *check_conditions(conditions)], **given)

    def _pooled_prompt(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Encode the prompt with CLIP; T5's tokens are replaced, so a single empty one stands in for them."""
        negative = given.get("negative_prompt")
        if negative is not None and given.get("true_cfg_scale", 1.0) > 1:
            raise ValueError(
                "There is no `text_encoder_2`, which reads the negative prompt. Load it, leave `negative_prompt` out, "
                "or give `negative_prompt_embeds` and `negative_pooled_prompt_embeds`."
            )
        scale = (given.get("joint_attention_kwargs") or {}).get("scale")
        if scale is not None:
            scale_lora_layers(self.text_encoder, scale)
        pooled = self._get_clip_prompt_embeds(given["prompt"], device=self._execution_device)
        if scale is not None:
            unscale_lora_layers(self.text_encoder, scale)
        tokens = pooled.new_zeros(len(pooled), 1, self.transformer.config.joint_attention_dim)
        mask = torch.ones(len(pooled), 1, dtype=torch.bool) if given.get("mask_padding") else None
        return {"prompt": None, "prompt_embeds": tokens, "pooled_prompt_embeds": pooled, "prompt_embeds_mask": mask}

    @torch.no_grad()
    def encode_image_embeds(
        self,
        prompt: str | list[str],
        image: Any = None,
        language: Language = "en",
        max_pixels: int = MAX_PIXELS,
    ) -> dict[str, torch.Tensor]:
        """Ask the language model only, so that it can be freed, or its answer saved.

        Args:
            prompt (`str` or `list[str]`): See [`__call__`].
            image (*optional*): See [`__call__`].
            language (`"en"` or `"zh"`, *optional*, defaults to `"en"`): See [`__call__`].
            max_pixels (`int`, *optional*, defaults to 262640): See [`__call__`].

        Returns:
            `dict[str, torch.Tensor]`: to be given as `image_embeds`, see [`embed_prompts`].

        Raises:
            ValueError: if there is no language model, or the inputs do not fit.
        """
        self._check_language_model()
        images = None if image is None else list_images(image)
        embeds = embed_prompts(self.mllm, self.mllm_processor, self._texts(prompt), images, language, max_pixels)
        self.maybe_free_model_hooks()
        return embeds

    def describe(self, image: Any = None, question: str = QUESTION, **kwargs: Any) -> str:
        """Answer a question about an image, see [`NexusGenModel.describe`].

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): The image; none for a plain chat.
            question (`str`, *optional*): The question; asks for a brief description by default.
            kwargs: `max_new_tokens`, `max_pixels` and arguments of `generate`.

        Returns:
            `str`: the answer.

        Raises:
            ValueError: if there is no language model, or the image is too long.
        """
        self._check_language_model()
        answer = self.mllm.describe(image, question, processor=self.mllm_processor, **kwargs)
        self.maybe_free_model_hooks()
        return answer

    def _texts(self, prompt: str | list[str] | None) -> list[str]:
        if prompt is None:
            raise ValueError("There is neither a `prompt` nor `image_embeds`. Say what to draw or what to change.")
        return read_texts("`prompt`", prompt)

    def _adapter(self, decoder: str) -> NexusGenAdapter | NexusGenEditingMerger:
        check_choice("`decoder`", decoder, ("generation", "editing"))
        adapter = getattr(self, f"{decoder}_adapter")
        if adapter is None:
            raise ValueError(
                f"The pipeline has no `{decoder}_adapter`, which the {decoder} decoder needs. Load both of its parts "
                f"with `load_nexus_gen_decoder(...)`, and pass them to `from_pretrained` or `from_pipe` as "
                f"`transformer` and `{decoder}_adapter`; or choose another `decoder`."
            )
        return adapter

    def _check_language_model(self) -> None:
        missing = [name for name in ("mllm", "mllm_processor") if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"The pipeline has no {missing}. Pass `NexusGenModel.from_pretrained(...)` and "
                f"`QwenVLProcessor.from_pretrained(...)` to `from_pretrained` or `from_pipe`."
            )
        check_language_model(self.mllm)
