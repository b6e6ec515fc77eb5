"""Checking and ordering the inputs of Redux."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from ...canvas import Canvas
from ...inputs.masks import is_box, mask_to_tokens
from ...inputs.numbers import check_embeds
from ...inputs.vision import check_single_image, list_samples
from ...sequence import AttentionRule
from ..eligen.condition import entity_rules


logger = logging.get_logger(__name__)

IMAGES, EMBEDS, REGION = (f"`{name}` of ReduxImages" for name in ("images", "image_embeds", "region"))
"""What they are, for errors."""


def count_images(images: Any, image_embeds: Any) -> int:
    """Count the images per prompt; raise a `ValueError` unless exactly one input is given, in a known shape."""
    if (images is None) == (image_embeds is None):
        raise ValueError(f"Exactly one of {IMAGES} and {EMBEDS} is required. Give one of them.")
    if image_embeds is None:
        return len(list_samples(images, IMAGES)[0])
    return image_embeds.shape[-3] if getattr(image_embeds, "ndim", 0) >= 3 else 0


def check_images(images: Any, image_embeds: Any) -> None:
    """Raise an error of [`read_image`] or [`check_embeds`] for invalid images or embeddings."""
    if image_embeds is None:
        for image in (image for sample in list_samples(images, IMAGES) for image in sample):
            check_single_image(IMAGES, image)
        return
    is_array = isinstance(image_embeds, np.ndarray) and image_embeds.dtype.kind == "f"
    embeds = torch.from_numpy(image_embeds) if is_array else image_embeds
    axes = 4 if getattr(embeds, "ndim", 3) == 4 else 3
    shape = "(images, patches, dim) or (prompts, images, patches, dim), the last hidden states of the vision model"
    check_embeds(EMBEDS, embeds, shape, *[None] * axes)


def check_redux_embeds(embeds: torch.Tensor, width: int) -> None:
    """Raise a `ValueError` unless the embeddings `(n, images, patches, dim)` are as wide as the embedder takes."""
    if embeds.shape[-1] != width:
        raise ValueError(
            f"{EMBEDS}, or what the vision model gives, is {embeds.shape[-1]} wide, but the `image_embedder` takes "
            f"{width}. Use the vision model that it was trained with: for FLUX.1-Redux-dev that in its folder "
            f"`image_encoder`."
        )


def read_masks(given: Any, count: int) -> list[list[Any]]:
    """Return the masks of every group, `None` for none, as one list for all prompts or one for each.

    Raises:
        ValueError: if the length of a list is not the number of groups.
    """
    if not isinstance(given, (list, tuple)) or is_box(given):
        return [[given] * count]
    nested = bool(given) and all(isinstance(part, (list, tuple)) and not is_box(part) for part in given)
    samples = [list(part) for part in given] if nested else [list(given)]
    lengths = sorted({len(masks) for masks in samples})
    if lengths != [count]:
        raise ValueError(
            f"{REGION} has lists of the lengths {lengths}, but {count} groups of tokens can have one "
            f"(images that are summed share theirs). Give one region for all, or a list with one or `None` for each."
        )
    return samples


def token_masks(masks: Sequence[Any], canvas: Canvas) -> dict[str, torch.Tensor]:
    """Return one group's mask for each prompt on the token grid; an empty dict if no prompt has one.

    Args:
        masks (`Sequence[RegionMask | None]`): One for all prompts, or one for each.
        canvas (`Canvas`): The canvas.

    Returns:
        `dict[str, torch.Tensor]`: boolean, `"mask"` `(len(masks), num_tokens)` and `"unmasked"` `(len(masks),)`.
    """
    unmasked = torch.tensor([mask is None for mask in masks])
    if unmasked.all():
        return {}
    full = torch.ones(canvas.num_tokens, dtype=torch.bool)
    tokens = torch.stack([full if mask is None else mask_to_tokens(mask, canvas, REGION) for mask in masks])
    if not tokens.any(dim=1).all():
        logger.warning(
            f"A region of `ReduxImages` covers no token of the {canvas.width} x {canvas.height} canvas, so its image "
            f"changes nothing. White is inside."
        )
    return {"mask": tokens, "unmasked": unmasked}


def region_rules(name: str, mask: torch.Tensor, unmasked: torch.Tensor) -> list[AttentionRule]:
    """Return the rules of a masked image, those of an entity, for all samples but the unmasked ones.

    Args:
        name (`str`): Name of its text group.
        mask (`torch.Tensor` of shape `(1 or batch_size, target_length)`): Its tokens, boolean.
        unmasked (`torch.Tensor` of shape `(1 or batch_size,)`): Samples that have no mask, boolean.

    Returns:
        `list[AttentionRule]`
    """
    return [
        AttentionRule(rule.query, rule.key, unmasked[:, None, None] if rule.allow is False else rule.allow)
        for rule in entity_rules(name, mask)
    ]
