"""Nexus-Gen: an image's embeddings, predicted by a language model, in place of the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..._compat import offload_all_but
from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep, PromptEmbeds
from ...inputs.checks import read_texts
from ...inputs.images import ImageInputs
from ...inputs.qwen_vl import QwenVLProcessor, check_processor
from ...inputs.text import check_text_width
from ...inputs.vision import check_single_image, list_images
from ...sequence import Contribution
from .adapter import NexusGenAdapter
from .language_model import NUM_IMAGE_TOKENS, NexusGenModel
from .merger import NexusGenEditingMerger
from .prompts import (
    MAX_PIXELS,
    Language,
    check_embeds,
    check_language_model,
    check_options,
    editing_ids,
    embed_prompts,
)


_IMAGE = "`image` of NexusGenEmbedding"
NexusGenEmbeds = torch.Tensor | Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class NexusGenEmbedding(FluxCondition):
    """Drawing and editing with Nexus-Gen V2 ([paper](https://huggingface.co/papers/2504.21356)).

    A language model predicts the embeddings of the image to be drawn. They replace the prompt on the
    conditional branch; CLIP's pooled prompt and the negative prompt are kept. The transformer must be the one of the
    same decoder as the adapter, see [`load_nexus_gen_decoder`].

    Args:
        adapter (`NexusGenAdapter` or `NexusGenEditingMerger`):
            Of the generation or of the editing decoder; on the pipeline's device and of its dtype, or offloaded.
        prompt (`str` or `Sequence[str]`, *optional*):
            A description, or an instruction for `image`, in English or Chinese; one for all or one per prompt.
            `"<image>"` in an instruction marks the position of the image.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            The image to edit, of any size and mode, one for all or one per prompt. With the generation decoder only
            the language model sees it.
        image_embeds (`torch.Tensor` or `Mapping[str, torch.Tensor]`, *optional*):
            The result of [`~NexusGenEmbedding.embed`], in place of `prompt` and `image`; no language model is needed
            then. A tensor `(1 or prompts, 81, hidden_size)` stands for `{"image_embeds": tensor}`.
        mllm (`NexusGenModel`, *optional*):
            The language model, on any device and of any data type; the pipeline's by default.
        mllm_processor (`QwenVLProcessor`, *optional*): Its processor; the pipeline's by default.
        language (`"en"` or `"zh"`, defaults to `"en"`):
            The language of the sentence that Nexus-Gen puts around a description. Instructions have none.
        max_pixels (`int`, defaults to 262640): Maximum number of pixels of `image`, which is reduced to it.

    Raises:
        TypeError: if `adapter` is something else.
        ValueError: if there is neither a prompt nor embeddings or both, the language is unknown, or `max_pixels` is
            below 3136.
    """

    own_placement: ClassVar[tuple[str, ...]] = ("mllm",)

    adapter: NexusGenAdapter | NexusGenEditingMerger = field(repr=False)
    prompt: str | Sequence[str] | None = None
    image: ImageInputs | None = field(default=None, repr=False)
    image_embeds: NexusGenEmbeds | None = field(default=None, repr=False)
    mllm: NexusGenModel | None = field(default=None, repr=False)
    mllm_processor: QwenVLProcessor | None = field(default=None, repr=False)
    language: Language = "en"
    max_pixels: int = MAX_PIXELS

    shared = ("ids", "reference_grid")

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, (NexusGenAdapter, NexusGenEditingMerger)):
            raise TypeError(
                f"`adapter` of NexusGenEmbedding is a {type(self.adapter).__name__}; expected a `NexusGenAdapter` or "
                f"a `NexusGenEditingMerger`, for example from `load_nexus_gen_decoder('generation_decoder.bin')`."
            )
        if (self.prompt is None) == (self.image_embeds is None):
            raise ValueError(
                "Exactly one of `prompt` of NexusGenEmbedding and `image_embeds` of NexusGenEmbedding is required. "
                "Give one of them."
            )
        if self.image_embeds is not None and self.image is not None:
            raise ValueError(
                "`image` of NexusGenEmbedding and `image_embeds` of NexusGenEmbedding were both given, but the "
                "embeddings hold the image already. Leave one of them out."
            )
        check_options(self.language, self.max_pixels)
        if self.prompt is not None:
            read_texts("`prompt` of NexusGenEmbedding", self.prompt)
        if self.image is not None:
            for image in list_images(self.image, _IMAGE):
                check_single_image(_IMAGE, image)
        if self.image_embeds is not None:
            check_embeds(self.image_embeds, self._width())
        if self.mllm is not None:
            check_language_model(self.mllm)
        check_processor("`mllm_processor` of NexusGenEmbedding", self.mllm_processor)

    def embed(self, pipe: Any = None) -> dict[str, torch.Tensor]:
        """Run the language model; the result can be saved and passed as `image_embeds` later.

        Args:
            pipe (`FluxNexusGenPipeline`, *optional*): Gives the language model that the condition lacks.

        Returns:
            `dict[str, torch.Tensor]`: see [`embed_prompts`].

        Raises:
            ValueError: if there is no language model, or its inputs do not fit.
        """
        if self.image_embeds is not None:
            given = self.image_embeds
            return dict(given) if isinstance(given, Mapping) else {"image_embeds": given}
        mllm, processor = (getattr(self, n) or getattr(pipe, n, None) for n in ("mllm", "mllm_processor"))
        if mllm is None or processor is None:
            raise ValueError(
                "There is no language model with its processor (`mllm`, `mllm_processor`), neither with the condition "
                "nor in the pipeline. Give `NexusGenModel.from_pretrained(...)` and `QwenVLProcessor.from_pretrained("
                "...)`, or give `image_embeds`."
            )
        prompts = read_texts("`prompt` of NexusGenEmbedding", self.prompt)
        images = None if self.image is None else list_images(self.image, _IMAGE)
        # Encoders that ran before free the card for the language model.
        offload_all_but(pipe, ("mllm",))
        with torch.no_grad():
            return embed_prompts(mllm, processor, prompts, images, self.language, self.max_pixels)

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the embeddings of the drawn image and of the given one, which replace the prompt."""
        return Demand(prompt_tokens=NUM_IMAGE_TOKENS + self.max_pixels // 28**2)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Run the language model, and place the tokens on the canvas.

        Args:
            pipe (`Encoders`): Gives the transformer, and the language model by default.
            canvas (`Canvas`): Gives the size, the batch, the device and the data type.

        Returns:
            `dict[str, torch.Tensor]`: what [`~NexusGenEmbedding.embed`] gives, per sample, and `"ids"` `(length, 3)`.

        Raises:
            ValueError: if the adapter does not fit the transformer, or the embeddings do not fit the adapter.
        """
        config = self.adapter.config
        check_text_width(type(self).__name__, config.output_dim, pipe.transformer)
        embeds = self.embed(pipe)
        if self.image_embeds is None:
            check_embeds(embeds, self._width())
        if isinstance(self.adapter, NexusGenAdapter):
            embeds = {"image_embeds": embeds["image_embeds"]}
        fields = ["prompt"] + ["image"] * (self.image is not None) if self.image_embeds is None else ["image_embeds"]
        source = " with ".join(f"`{name}` of {type(self).__name__}" for name in fields)
        encoded = {
            name: value
            if name == "reference_grid"
            else canvas.per_sample(value, source).to(canvas.device, canvas.dtype)
            for name, value in embeds.items()
        }
        if isinstance(self.adapter, NexusGenEditingMerger):
            encoded["ids"] = editing_ids(canvas, self._grids(encoded), config.spatial_merge_size)
        return encoded

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        """Return the adapter's tokens, which are the same at every step."""
        return {} if step.branch == "uncond" else {"tokens": self._tokens(encoded)}

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds | None:
        """Return the tokens that the adapter makes of the embeddings; nothing on the unconditional branch."""
        if step.branch == "uncond":
            return None
        tokens = encoded["tokens"] if "tokens" in encoded else self._tokens(encoded)
        ids = encoded.get("ids", step.prompt.ids.new_zeros(tokens.shape[1], 3))
        # Rounded as the model was trained: in bfloat16 the fractions of these positions are coarse.
        ids = ids.to(step.latents)
        return PromptEmbeds(tokens.expand(step.latents.shape[0], -1, -1), step.prompt.pooled, ids)

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return nothing: the tokens replace the prompt."""
        return Contribution()

    def _tokens(self, encoded: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(self.adapter, NexusGenAdapter):
            return self.adapter(encoded["image_embeds"])
        grid, *others = self._grids(encoded)
        return self.adapter(encoded["image_embeds"], grid, encoded.get("reference_embeds"), *others)

    def _grids(self, encoded: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
        """Return rows and columns of patches of the image to be drawn, which is square, and of the given one."""
        side = math.isqrt(encoded["image_embeds"].shape[1]) * self.adapter.config.spatial_merge_size
        given = encoded.get("reference_grid")
        return [(side, side)] if given is None else [(side, side), tuple(given.tolist())]

    def _width(self) -> int:
        config = self.adapter.config
        return config.input_dim if isinstance(self.adapter, NexusGenAdapter) else config.hidden_size
