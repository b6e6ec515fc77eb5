"""Pictures to embeddings, with the vision models of transformers and their processors for PIL pictures."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from .._compat import execution_device
from ..canvas import plain_picture


# The processor class of each kind of vision model.
PROCESSORS = {"siglip_vision_model": "SiglipImageProcessor", "clip_vision_model": "CLIPImageProcessor"}


def image_processor_for(image_encoder: torch.nn.Module) -> Any:
    """The processor that belongs to a SigLIP or CLIP vision model, without torchvision.

    Args:
        image_encoder (`torch.nn.Module`): A `SiglipVisionModel` or `CLIPVisionModelWithProjection`.

    Returns:
        `transformers.BaseImageProcessor`: resizes to the model's input size and normalises as it was trained.

    Raises:
        ValueError: if the model is of another kind.
    """
    config: Any = image_encoder.config
    name = PROCESSORS.get(config.model_type)
    if name is None:
        raise ValueError(
            f"There is no default image processor for a {type(image_encoder).__name__}; known are {list(PROCESSORS)}. "
            f"Pass `image_processor`, the one that was saved with the encoder."
        )
    side = {"height": config.image_size, "width": config.image_size}
    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    if name == "SiglipImageProcessor":
        return processor(size=side)
    return processor(size={"shortest_edge": config.image_size}, crop_size=side)


def embed_images(
    images: Any, image_encoder: torch.nn.Module | None, image_processor: Any = None, patches: bool = False
) -> torch.Tensor:
    """Embeddings of pictures.

    Args:
        images:
            A picture, a list of pictures, or a list of such lists for each prompt, of equal lengths. PIL images;
            arrays `(height, width, channels)` and tensors `(channels, height, width)` with floats in [0, 1] or
            integers up to 255. Of any size; an alpha channel is dropped.
        image_encoder (`torch.nn.Module`): A vision model of transformers.
        image_processor (*optional*): Its processor; [`image_processor_for`] by default.
        patches (`bool`, defaults to `False`): One embedding for each patch, the model's last hidden state.

    Returns:
        `torch.Tensor` of shape `(1 or prompts, images, image_embed_dim)`: the projected embedding where the model has
        one, as CLIP, and its pooled output otherwise, as SigLIP. With `patches`,
        `(1 or prompts, images, patches, hidden_size)`.

    Raises:
        ValueError: if there is no encoder; if the lists are empty, mixed or of different lengths, or a picture has a
            wrong shape.
        TypeError: if something is no picture.
    """
    if image_encoder is None:
        raise ValueError(
            "There are pictures but no `image_encoder`, neither with the condition nor in the pipeline. Give the one "
            "that the adapter was trained with, for example `SiglipVisionModel.from_pretrained(...)`, or give "
            "`image_embeds`."
        )
    samples = list_samples(images)
    processor = image_processor_for(image_encoder) if image_processor is None else image_processor
    pictures = [to_pil(picture) for sample in samples for picture in sample]
    pixels = processor(images=pictures, return_tensors="pt").pixel_values
    weight = next(image_encoder.parameters())
    output = image_encoder(pixels.to(execution_device(image_encoder), weight.dtype))
    embeds = output.last_hidden_state if patches else getattr(output, "image_embeds", None)
    embeds = output.pooler_output if embeds is None else embeds
    return embeds.unflatten(0, (len(samples), len(samples[0])))


def list_samples(images: Any) -> list[list[Any]]:
    """The pictures of [`embed_images`] as one list for all prompts, or one for each; raises its `ValueError`s."""
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    nested = {isinstance(part, (list, tuple)) for part in given}
    samples = [list(part) for part in given] if nested == {True} else [given]
    counts = [len(sample) for sample in samples]
    if len(nested) != 1 or len(set(counts)) != 1 or 0 in counts:
        raise ValueError(
            f"`images` holds {counts} pictures for the prompts{' and mixes lists with pictures' * (len(nested) > 1)}. "
            f"Give one list of pictures for all prompts, or one for each with equally many, and at least one picture."
        )
    return samples


def to_pil(picture: Any) -> Image.Image:
    """A PIL picture in RGB from what [`embed_images`] takes.

    Raises:
        TypeError: if it is none of the kinds.
        ValueError: if an array or tensor has another shape.
    """
    plain = plain_picture(picture)
    if isinstance(plain, Image.Image):
        return plain
    array = plain.detach().float().cpu().movedim(0, -1).numpy() if isinstance(plain, torch.Tensor) else plain
    if not hasattr(array, "ndim"):
        raise TypeError(f"A picture is a PIL image, an array or a tensor, but a {type(picture).__name__} came.")
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(
            f"A picture has the shape {tuple(picture.shape)}; expected (height, width, channels) for an array or "
            f"(channels, height, width) for a tensor, with 3 or 4 channels."
        )
    return VaeImageProcessor.numpy_to_pil(array[None, ..., :3].clip(0, 1))[0]


def list_pictures(image: Any) -> list[Any]:
    """Single pictures of what may be one, a list of them, or a batch."""
    if isinstance(image, (list, tuple)):
        return [part for each in image for part in list_pictures(each)]
    if getattr(image, "ndim", 3) == 4:
        return list(image)
    return [] if image is None else [image]
