"""Redux: images as a part of the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ReduxImageEncoder
from transformers import SiglipImageProcessor, SiglipVisionModel

from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep, PromptEmbeds
from ...former_arguments import former_arguments
from ...inputs.checks import check_choice
from ...inputs.images import ImageInput, ImageInputs
from ...inputs.masks import RegionMask, check_regions
from ...inputs.numbers import read_number, read_numbers
from ...inputs.text import check_text_width, text_group
from ...inputs.token_grids import merge_tokens
from ...inputs.vision import check_vision_model, embed_images
from ...sequence import Contribution
from . import IMAGE_TOKENS
from .inputs import (
    EMBEDS,
    IMAGES,
    REGION,
    check_images,
    check_redux_embeds,
    count_images,
    read_masks,
    region_rules,
    token_masks,
)


@former_arguments(strengths="scale", mask="region")
@dataclass(frozen=True, eq=False)
class ReduxImages(FluxCondition):
    """Images as text tokens, FLUX.1 Redux ([model card](https://huggingface.co/black-forest-labs/FLUX.1-Redux-dev)).

    Each image becomes a text group of 729 tokens in the released models, beside the prompt, which is kept.

    Args:
        images (*optional*):
            An image, a list of images for all prompts, or such a list for each prompt, of equal lengths. PIL
            images, arrays `(height, width, channels)` or tensors `(channels, height, width)`, of any size.
        scale (`float` or `Sequence[float]`, defaults to 1.0):
            For all, or per image. With `combine="groups"` in [0, 1]: the share of the image's tokens that is
            left, each the mean of those nearest to it; 0 leaves the image out, bit-exact. With `"sum"` any factors.
        prompt_scale (`float`, defaults to 1.0): Factor of the prompt's hidden states; 0 drops the prompt.
        pooled_scale (`float`, defaults to 1.0): Factor of the pooled prompt.
        region (`RegionMask`, a list of one per image, or such a list for each prompt, *optional*):
            Only this region of the generated image, and no text, sees the image and is seen by it. `None` in a
            list leaves an image everywhere.
        negative (`"same"` or `None`, *optional*):
            What the unconditional branch gets: nothing, as in diffusers, or images and scales too, as the reference.
        combine (`"groups"` or `"sum"`, defaults to `"groups"`):
            Give every image tokens of its own, or sum the tokens, weighted by `scale`, as
            [`~diffusers.FluxPriorReduxPipeline`] does.
        image_embedder ([`~diffusers.ReduxImageEncoder`]):
            From embeddings of patches to text tokens; on the pipeline's device and of its dtype, or offloaded.
        image_encoder (`SiglipVisionModel`, *optional*): The pipeline's by default.
        image_processor (*optional*): The encoder's processor; made from its config by default.
        image_embeds (`torch.Tensor` or `np.ndarray`, *optional*):
            The encoder's last hidden states, `(images, patches, dim)` or `(prompts, images, patches, dim)`, in place
            of `images`.

    Raises:
        TypeError: if `image_embedder` or a number is something else.
        ValueError: if inputs are missing, contradict each other or are out of range.
    """

    images: ImageInputs | Sequence[Sequence[ImageInput]] | None = field(default=None, repr=False)
    scale: float | Sequence[float] = 1.0
    prompt_scale: float = 1.0
    pooled_scale: float = 1.0
    region: RegionMask | Sequence[RegionMask | None] | Sequence[Sequence[RegionMask | None]] | None = field(
        default=None, repr=False
    )
    negative: Literal["same"] | None = None
    combine: Literal["groups", "sum"] = "groups"
    image_embedder: ReduxImageEncoder = field(default=None, repr=False)
    image_encoder: SiglipVisionModel | None = field(default=None, repr=False)
    image_processor: SiglipImageProcessor | None = None
    image_embeds: torch.Tensor | np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.image_embedder, ReduxImageEncoder):
            raise TypeError(
                f"`image_embedder` of ReduxImages is a {type(self.image_embedder).__name__}; expected a "
                f"`ReduxImageEncoder`, for example from `load_redux_embedder('flux1-redux-dev.safetensors')`."
            )
        for name, known in {"negative": ("same", None), "combine": ("groups", "sum")}.items():
            check_choice(f"`{name}` of ReduxImages", getattr(self, name), known)
        check_vision_model(self.image_encoder, self.image_processor)
        count = count_images(self.images, self.image_embeds)
        check_images(self.images, self.image_embeds)
        scales = self._scales(count)
        if self.combine == "groups" and not all(0 <= scale <= 1 for scale in scales):
            raise ValueError(
                f"`scale` of ReduxImages must be in [0, 1], got {scales}. Other factors need `combine='sum'`, "
                f"which scales the tokens instead of merging them."
            )
        read_number("`prompt_scale` of ReduxImages", self.prompt_scale)
        read_number("`pooled_scale` of ReduxImages", self.pooled_scale)
        for masks in read_masks(self.region, 1 if self.combine == "sum" else count):
            for mask in masks:
                if mask is not None:
                    check_regions(REGION, mask)

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the tokens of every image at its scale."""
        count = count_images(self.images, self.image_embeds)
        config: Any = getattr(self.image_encoder, "config", None)
        patches = IMAGE_TOKENS if config is None else (config.image_size // config.patch_size) ** 2
        if self.image_embeds is not None:
            patches = self.image_embeds.shape[-2]
        scales = self._scales(count)
        shares = [float(any(scales))] if self.combine == "sum" else scales
        return Demand(
            appended_tokens=sum(math.ceil(share * patches) for share in shares), masked=self.region is not None
        )

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Run the vision model and put the regions on the token grid.

        Args:
            pipe (`Encoders`): Gives the transformer, and the encoder by default.
            canvas (`Canvas`): Gives the size, the batch, the device and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"image_embeds"` `(1 or num_samples, images, patches, dim)` and, for each group
            with a region, boolean, `"mask_<i>"` `(1 or num_samples, num_tokens)` and, for samples that have none,
            `"unmasked_<i>"` `(1 or num_samples,)`.

        Raises:
            ValueError: if the embedder does not fit the transformer or the encoder, or the inputs do not fit the
                batch.
        """
        check_text_width(type(self).__name__, self.image_embedder.config.txt_in_features, pipe.transformer)
        embeds = self._embed(pipe)
        check_redux_embeds(embeds, self.image_embedder.config.redux_dim)
        encoded = {
            "image_embeds": canvas.per_sample(embeds, IMAGES if self.image_embeds is None else EMBEDS).to(
                canvas.device, canvas.dtype
            )
        }
        for index, masks in enumerate(zip(*read_masks(self.region, 1 if self.combine == "sum" else embeds.shape[1]))):
            encoded |= {
                f"{name}_{index}": canvas.per_sample(each, REGION) for name, each in token_masks(masks, canvas).items()
            }
        return encoded

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds | None:
        """Return the scaled prompt; `None` where both scales are 1, so that another condition may replace it."""
        if not self._acts(step) or self.prompt_scale == self.pooled_scale == 1:
            return None
        hidden_states, pooled = step.prompt.hidden_states, step.prompt.pooled
        return replace(step.prompt, hidden_states=hidden_states * self.prompt_scale, pooled=pooled * self.pooled_scale)

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return a text group `redux_<i>` for every image, or one for their sum, and who may see it."""
        groups, rules = [], []
        for index, tokens in self._tokens(encoded["image_embeds"]) if self._acts(step) else ():
            name, mask, unmasked = (f"{part}_{index}" for part in ("redux", "mask", "unmasked"))
            # Text does not see a masked image, so the image is not part of the prompt there.
            in_prompt = encoded[unmasked][:, None] if mask in encoded else True
            groups.append(text_group(name, tokens, step, in_prompt))
            rules += region_rules(name, encoded[mask], encoded[unmasked]) if mask in encoded else []
        return Contribution(text=groups, rules=rules)

    def _acts(self, step: DenoisingStep) -> bool:
        return step.branch == "cond" or self.negative is not None

    def _tokens(self, embeds: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        scales = self._scales(embeds.shape[1])
        parts = [
            (index, scale, self.image_embedder(embeds[:, index]).image_embeds)
            for index, scale in enumerate(scales)
            if scale
        ]
        if self.combine == "sum":
            return [(0, sum(scale * tokens for _, scale, tokens in parts))] if parts else []
        return [(index, merge_tokens(tokens, scale)) for index, scale, tokens in parts]

    def _scales(self, count: int) -> list[float]:
        return read_numbers("`scale` of ReduxImages", self.scale, count, "per image")

    def _embed(self, pipe: Encoders) -> torch.Tensor:
        if self.image_embeds is not None:
            embeds = torch.as_tensor(self.image_embeds)
            return embeds[None] if embeds.ndim == 3 else embeds
        encoder, processor = self.image_encoder, self.image_processor
        if encoder is None:
            encoder, processor = pipe.image_encoder, processor or pipe.feature_extractor
        return embed_images(self.images, encoder, processor, patches=True, what=IMAGES)
