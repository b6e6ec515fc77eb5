"""Embedding images with transformers' vision models and their processors for PIL images."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from .._devices import execution_device
from .checks import shown
from .images import read_image


# The processor class of each kind of vision model.
PROCESSORS = {"siglip_vision_model": "SiglipImageProcessor", "clip_vision_model": "CLIPImageProcessor"}


def image_processor_for(image_encoder: torch.nn.Module) -> Any:
    """Return the processor that belongs to a SigLIP or CLIP vision model, without torchvision.

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
            f"There is no default image processor for a {type(image_encoder).__name__}; there is one for "
            f"{list(PROCESSORS)}. Pass `image_processor`, the one that was saved with the encoder."
        )
    side = {"height": config.image_size, "width": config.image_size}
    processor = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    if name == "SiglipImageProcessor":
        return processor(size=side)
    return processor(size={"shortest_edge": config.image_size}, crop_size=side)


def embed_images(
    images: Any,
    image_encoder: torch.nn.Module | None,
    image_processor: Any = None,
    patches: bool = False,
    what: str = "`images`",
) -> torch.Tensor:
    """Embed images with a vision model.

    Args:
        images:
            An image, a list of images, or a list of such lists for each prompt, of equal lengths. PIL images;
            arrays `(height, width, channels)` and tensors `(channels, height, width)` with floats in [0, 1] or
            integers up to 255. Of any size; an alpha channel is dropped.
        image_encoder (`torch.nn.Module`): A vision model of transformers.
        image_processor (*optional*): Its processor; [`image_processor_for`] by default.
        patches (`bool`, defaults to `False`): One embedding for each patch, the model's last hidden state.
        what (`str`): What the images are, for errors, such as "`images` of ReduxImages".

    Returns:
        `torch.Tensor` of shape `(1 or prompts, images, image_embed_dim)`: the projected embedding where the model has
        one, as CLIP, and its pooled output otherwise, as SigLIP. With `patches`,
        `(1 or prompts, images, patches, hidden_size)`.

    Raises:
        ValueError: if there is no encoder; if the lists are empty, mixed or of different lengths, or an image has a
            wrong shape.
        TypeError: if something is not an image.
    """
    if image_encoder is None:
        raise ValueError(
            f"There are {what} but no `image_encoder`, neither with the condition nor in the pipeline. Give the one "
            "that the adapter was trained with, for example `SiglipVisionModel.from_pretrained(...)`, or give "
            "`image_embeds`."
        )
    check_vision_model(image_encoder, image_processor)
    samples = list_samples(images, what)
    processor = image_processor_for(image_encoder) if image_processor is None else image_processor
    images = [to_pil(image, what) for sample in samples for image in sample]
    pixels = processor(images=images, return_tensors="pt").pixel_values
    weight = next(image_encoder.parameters())
    output = image_encoder(pixels.to(execution_device(image_encoder), weight.dtype))
    embeds = output.last_hidden_state if patches else getattr(output, "image_embeds", None)
    embeds = output.pooler_output if embeds is None else embeds
    return embeds.unflatten(0, (len(samples), len(samples[0])))


def check_vision_model(image_encoder: Any, image_processor: Any) -> None:
    """Raise a `TypeError` unless a vision model and its image processor, where given, have the right types."""
    if image_encoder is not None and not hasattr(getattr(image_encoder, "config", None), "model_type"):
        raise TypeError(
            f"`image_encoder` must be a vision model of transformers, such as `SiglipVisionModel.from_pretrained(...)`"
            f", got {shown(image_encoder)}."
        )
    if image_processor is not None and not (callable(image_processor) and hasattr(image_processor, "preprocess")):
        raise TypeError(
            f"`image_processor` must be an image processor of transformers, got {shown(image_processor)}. Leave it "
            f"out to take the encoder's own."
        )


def list_samples(images: Any, what: str = "`images`") -> list[list[Any]]:
    """Return the images of [`embed_images`] as one list for all prompts or one each; raise its `ValueError`s."""
    given = list(images) if isinstance(images, (list, tuple)) else [images]
    nested = {isinstance(part, (list, tuple)) for part in given}
    samples = [list(part) for part in given] if nested == {True} else [given]
    counts = [len(sample) for sample in samples]
    if len(nested) != 1 or len(set(counts)) != 1 or 0 in counts:
        raise ValueError(
            f"{what} holds {counts} images for the prompts{' and mixes lists with images' * (len(nested) > 1)}. "
            f"Give one list of images for all prompts, or one for each with equally many, and at least one image."
        )
    return samples


def to_pil(image: Any, what: str = "An image") -> Image.Image:
    """Convert what [`read_image`] takes, except a batch, to a PIL image in RGB.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): The image; floats from 0 to 1.
        what (`str`): What it is, for errors, such as "`images` of ReduxImages".

    Returns:
        `PIL.Image.Image`

    Raises:
        TypeError: if it has another type.
        ValueError: if an array or tensor has another shape, or values out of range.
    """
    given = image.detach().cpu() if isinstance(image, torch.Tensor) and not image.is_meta else image
    read = check_single_image(what, given)
    if isinstance(read, Image.Image):
        return read
    array = read.float().movedim(-3, -1).numpy() if isinstance(read, torch.Tensor) else read
    return VaeImageProcessor.numpy_to_pil(array[None].clip(0, 1))[0]


def check_single_image(what: str, image: Any) -> Any:
    """Read an image that is not a batch, see [`read_image`]; raise its errors, and one for floats below 0."""
    read = read_image(what, image, signed=False)
    if getattr(read, "ndim", 3) != 3:
        raise ValueError(f"{what} must be a single image, got a batch of the shape {tuple(image.shape)}.")
    return read


def list_images(image: Any, what: str = "`image`") -> list[Any]:
    """Return the single images of an image, a list or a batch; raise an error for an empty list."""
    if isinstance(image, (list, tuple)):
        listed = [part for each in image for part in list_images(each, what)]
    else:
        listed = list(image) if getattr(image, "ndim", 3) == 4 else [image]
    if not listed or any(each is None for each in listed):
        raise ValueError(f"{what} holds no image, or None. Give at least one image, and no gaps.")
    return listed
