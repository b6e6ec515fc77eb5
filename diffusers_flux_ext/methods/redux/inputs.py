"""Checking and ordering the inputs of Redux."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from diffusers.utils import logging

from ...canvas import Canvas
from ...inputs.masks import is_box, mask_to_tokens
from ...inputs.vision import list_samples
from ...sequence import AttentionRule
from ..eligen.condition import entity_rules


logger = logging.get_logger(__name__)


def count_pictures(images: Any, image_embeds: Any) -> int:
    """Pictures of each prompt; raises a `ValueError` unless exactly one of the two is given, in a known shape."""
    if (images is None) == (image_embeds is None):
        raise ValueError("`ReduxImages` takes either `images` or `image_embeds`; give one of the two.")
    if image_embeds is None:
        return len(list_samples(images)[0])
    shape = tuple(image_embeds.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(
            f"`image_embeds` has the shape {shape}; expected (images, patches, dim) or (prompts, images, patches, "
            f"dim), the last hidden states of the vision model."
        )
    return shape[-3]


def check_redux_embeds(embeds: torch.Tensor, width: int) -> None:
    """Raise a `ValueError` unless the embeddings `(n, images, patches, dim)` are as wide as the embedder takes."""
    if embeds.shape[-1] != width:
        raise ValueError(
            f"The embeddings of patches are {embeds.shape[-1]} wide, but the `image_embedder` takes {width}. Use the "
            f"vision model that it was trained with: for FLUX.1-Redux-dev that in its folder `image_encoder`."
        )


def read_numbers(name: str, given: Any, count: int = 1) -> list[float]:
    """One finite number for all, or one per picture, as a list.

    Raises:
        TypeError: if something is no number.
        ValueError: if one is not finite, or there are too many or too few.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    numbers = list(given) if several else [given] * count
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TypeError(f"`{name}` of ReduxImages takes numbers, but {number!r} came.")
        if not math.isfinite(number):
            raise ValueError(f"`{name}` of ReduxImages has to be finite, but {number!r} came.")
    if len(numbers) != count:
        raise ValueError(
            f"`{name}` of ReduxImages has {len(numbers)} numbers for {count} pictures. Give one for all or one each."
        )
    return [float(number) for number in numbers]


def read_masks(given: Any, count: int) -> list[list[Any]]:
    """The masks of every group, `None` for none, as one list for all prompts or one for each.

    Raises:
        ValueError: if a list has another length than there are groups.
    """
    if not isinstance(given, (list, tuple)) or is_box(given):
        return [[given] * count]
    nested = bool(given) and all(isinstance(part, (list, tuple)) and not is_box(part) for part in given)
    samples = [list(part) for part in given] if nested else [list(given)]
    lengths = sorted({len(masks) for masks in samples})
    if lengths != [count]:
        raise ValueError(
            f"`mask` of ReduxImages has lists of the lengths {lengths}, but {count} groups of tokens can have one "
            f"(pictures that are summed share theirs). Give one mask for all, or a list with one or `None` for each."
        )
    return samples


def token_masks(masks: Sequence[Any], canvas: Canvas) -> dict[str, torch.Tensor]:
    """One group's mask for each prompt on the token grid; nothing where no prompt has one.

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
    tokens = torch.stack([full if mask is None else mask_to_tokens(mask, canvas) for mask in masks])
    if not tokens.any(dim=1).all():
        logger.warning(
            f"A mask of `ReduxImages` covers no token of the {canvas.width} x {canvas.height} canvas, so its picture "
            f"changes nothing. White is inside."
        )
    return {"mask": tokens, "unmasked": unmasked}


def region_rules(name: str, mask: torch.Tensor, unmasked: torch.Tensor) -> list[AttentionRule]:
    """The rules of a masked picture, those of an entity, for all samples but the unmasked ones.

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
