"""IP-Adapter: images as prompts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection, SiglipImageProcessor, SiglipVisionModel

from ...attention.image_prompts import IMAGE_PROMPTS, ImagePrompt, check_adapter_fits
from ...attention.parallel import check_not_split
from ...attention.processor import check_image_prompts_run, regional_attention
from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...former_arguments import former_arguments
from ...inputs.checks import check_choice
from ...inputs.images import ImageInput, ImageInputs
from ...inputs.masks import RegionMask, check_regions, list_regions, mask_to_tokens
from ...inputs.numbers import check_embeds, check_window, is_active, read_numbers, warn_without_step
from ...inputs.vision import check_single_image, check_vision_model, embed_images, list_samples
from ...offload.blocks import compute_dtype
from ...sequence import Contribution
from .model import FluxIPAdapter


_IMAGES, _EMBEDS, _REGION = (f"`{name}` of IPAdapterImages" for name in ("images", "image_embeds", "region"))


@former_arguments(mask="region")
@dataclass(frozen=True, eq=False)
class IPAdapterImages(FluxCondition):
    """Images as prompts, by an IP-Adapter ([paper](https://huggingface.co/papers/2308.06721)).

    Several images in one condition become one sequence of tokens; several conditions, each with an adapter, a scale
    and a region of its own, are summed. Keys and values are computed once per branch, not per step.

    Args:
        adapter (`FluxIPAdapter`): The adapter, on the pipeline's device and of its dtype, or offloaded.
        images (*optional*):
            An image, a list of images for all prompts, or such a list for each prompt, of equal lengths. PIL
            images, arrays `(height, width, channels)` or tensors `(channels, height, width)`, of any size.
        scale (`float` or `Sequence[float]`, defaults to 1.0):
            Strength, one number or one per block of the adapter. 0 everywhere switches the condition off.
        start (`float`, defaults to 0.0): Start of the window, as a fraction of the schedule.
        end (`float`, defaults to 1.0): End of the window.
        region (`RegionMask` or a list of one per prompt, *optional*):
            Only this region of the generated image attends to the images; with a region, text tokens do not.
        negative (`"zeros"` or `None`, defaults to `"zeros"`):
            What the unconditional branch gets: the adapter on zero embeddings as the reference, or no adapter.
        image_encoder (`torch.nn.Module`, *optional*):
            `SiglipVisionModel` (InstantX) or `CLIPVisionModelWithProjection` (XLabs); the pipeline's by default.
        image_processor (*optional*): The encoder's processor; made from its config by default.
        image_embeds (`torch.Tensor` or `np.ndarray` of shape `(images, dim)` or `(prompts, images, dim)`, *optional*):
            Embeddings in place of `images`; an encoder is not used then.
        negative_scale (`float` or `Sequence[float]`, defaults to 1.0):
            Strength on the unconditional branch; the reference always takes 1.

    Raises:
        ValueError: if inputs are missing or contradict each other.
    """

    adapter: FluxIPAdapter = field(repr=False)
    images: ImageInputs | Sequence[Sequence[ImageInput]] | None = field(default=None, repr=False)
    scale: float | Sequence[float] = 1.0
    start: float = 0.0
    end: float = 1.0
    region: RegionMask | Sequence[RegionMask] | None = field(default=None, repr=False)
    negative: Literal["zeros"] | None = "zeros"
    image_encoder: SiglipVisionModel | CLIPVisionModelWithProjection | None = field(default=None, repr=False)
    image_processor: SiglipImageProcessor | CLIPImageProcessor | None = None
    image_embeds: torch.Tensor | np.ndarray | None = field(default=None, repr=False)
    negative_scale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        check_window(type(self).__name__, self.start, self.end)
        if (self.images is None) == (self.image_embeds is None):
            raise ValueError(f"Exactly one of {_IMAGES} and {_EMBEDS} is required. Give one of them.")
        check_choice("`negative` of IPAdapterImages", self.negative, ("zeros", None))
        check_vision_model(self.image_encoder, self.image_processor)
        if not isinstance(self.adapter, FluxIPAdapter):
            raise TypeError(
                f"`adapter` of IPAdapterImages is a {type(self.adapter).__name__}; expected a `FluxIPAdapter`, for "
                f"example from `FluxIPAdapter.from_single_file(path)`."
            )
        self._check_images()
        if self.region is not None:
            check_regions(_REGION, self.region)
        self._scales(self.scale)
        factors = self._scales(self.negative_scale, "negative_scale")
        if self.negative is None and any(factor != 1 for factor in factors):
            raise ValueError(
                f"`negative_scale` of IPAdapterImages is {self.negative_scale!r}, which has no effect with `negative` "
                f"of IPAdapterImages at None: that leaves the unconditional branch alone. Take 'zeros', or leave the "
                f"scale out."
            )

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Embed the images and put the region on the token grid.

        Args:
            pipe (`Encoders`): Gives the transformer, and the encoder by default.
            canvas (`Canvas`): Gives the size, the batch, the device and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"image_embeds"` `(1 or num_samples, images, dim)` and, with a region, `"mask"`
            `(1 or num_samples, num_tokens)`, boolean.

        Raises:
            ValueError: if the adapter does not fit the transformer, or the inputs do not fit the adapter or the batch.
        """
        config = self.adapter.config
        heads = (config.num_attention_heads, config.attention_head_dim)
        check_adapter_fits(type(self).__name__, config.num_blocks, heads, config.after_block, pipe.transformer)
        if self.region is not None:
            check_not_split(pipe.transformer, f"the region of {type(self).__name__}")
        with regional_attention(pipe.transformer):
            check_image_prompts_run(pipe.transformer)
        embeds = self._embed(pipe)
        self.adapter.check_image_embeds(embeds)
        encoded = {"image_embeds": canvas.per_sample(embeds, self._given).to(canvas.device, canvas.dtype)}
        if self.region is not None:
            masks = torch.stack([mask_to_tokens(mask, canvas, _REGION) for mask in list_regions(self.region, _REGION)])
            encoded["mask"] = canvas.per_sample(masks, _REGION).to(canvas.device)
        return encoded

    def demand(self, prompt_tokens: int) -> Demand:
        """Count keys and values of all images in all blocks, which are held for all steps."""
        config = self.adapter.config
        images = self.image_embeds if self.images is None else self.images
        number = len(images) if isinstance(images, (list, tuple, torch.Tensor)) else 1
        width = config.num_attention_heads * config.attention_head_dim
        values = number * 2 * config.num_blocks * config.num_tokens * width
        return Demand(held_bytes=values * compute_dtype(self.adapter).itemsize)

    def reuse(self, step: DenoisingStep) -> Hashable:
        """Return one key per branch inside the window, and another outside it."""
        return step.branch, is_active(step, self.start, self.end)

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return keys and values of all blocks; none outside the window, at scale 0, or if `negative` is `None`."""
        warn_without_step(type(self).__name__, step, self.start, self.end)
        uncond, scales = step.branch == "uncond", self._scales(self.scale)
        if not is_active(step, self.start, self.end) or not any(scales) or (uncond and self.negative is None):
            return Contribution()
        embeds = encoded["image_embeds"]
        if uncond:
            embeds, scales = torch.zeros_like(embeds[:1]), self._scales(self.negative_scale)
        keys, values = self.adapter(embeds)
        prompt = ImagePrompt(
            keys,
            values * torch.tensor(scales, device=values.device, dtype=values.dtype)[:, None, None, None, None],
            used=None if all(scales) else tuple(bool(scale) for scale in scales),
            mask=encoded.get("mask"),
            after_block=self.adapter.config.after_block,
            name=type(self).__name__,
        )
        return Contribution(attention_kwargs={IMAGE_PROMPTS: (prompt,)})

    def _scales(self, scale: float | Sequence[float], name: str = "scale") -> list[float]:
        depth = self.adapter.config.num_blocks
        return read_numbers(f"`{name}` of IPAdapterImages", scale, depth, f"for each of its {depth} blocks")

    @property
    def _given(self) -> str:
        return _IMAGES if self.image_embeds is None else _EMBEDS

    def _check_images(self) -> None:
        if self.image_embeds is None:
            for image in (image for sample in list_samples(self.images, _IMAGES) for image in sample):
                check_single_image(_IMAGES, image)
            return
        embeds: Any = self.image_embeds
        embeds = torch.from_numpy(embeds) if isinstance(embeds, np.ndarray) and embeds.dtype.kind == "f" else embeds
        width, prompts = self.adapter.config.image_embed_dim, [None] * (getattr(embeds, "ndim", 2) == 3)
        check_embeds(_EMBEDS, embeds, f"(images, {width}) or (prompts, images, {width})", *prompts, None, width)

    def _embed(self, pipe: Encoders) -> torch.Tensor:
        if self.image_embeds is not None:
            embeds = torch.as_tensor(self.image_embeds)
            return embeds[None] if embeds.ndim == 2 else embeds
        if self.image_encoder is not None:
            return embed_images(self.images, self.image_encoder, self.image_processor, what=_IMAGES)
        return embed_images(
            self.images, pipe.image_encoder, self.image_processor or pipe.feature_extractor, what=_IMAGES
        )
