"""Control pictures: from a picture, and a mask for inpainting, to what a ControlNet takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..._compat import execution_device
from ...canvas import Canvas, encode_image, pack_latents, plain_picture, sample_image_latents
from ...condition import Encoders
from ...inputs.masks import RegionMask, list_regions, mask_to_pixels


def encode_control_picture(
    pipe: Encoders,
    canvas: Canvas,
    controlnet: Any,
    image: Any,
    inpaint_mask: RegionMask | Sequence[RegionMask] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """Stretch a picture to the canvas and encode it as a ControlNet wants it.

    Args:
        pipe (`Encoders`): Gives the VAE and the image processor.
        canvas (`Canvas`): Gives the size, the batch and the data type.
        controlnet (`FluxControlNetModel`): The ControlNet; one with a hint block (XLabs) takes pixels.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The picture, or one per prompt; a tensor with 16 channels is taken as scaled VAE latents.
        inpaint_mask (`RegionMask` or a list of them, *optional*):
            White is redrawn: the picture is black there, and 1 - mask becomes a further latent channel, sampled at
            the first of the pixels that a latent pixel stands for.
        generator (`torch.Generator` or a list, *optional*): Sample the latents instead of taking their mean.

    Returns:
        `torch.Tensor` of shape `(1 or num_samples, num_tokens, 64 or 68)`, or `(1 or num_samples, 3, height, width)`
        in [-1, 1] for pixels.

    Raises:
        ValueError: if a picture has a wrong shape, or the numbers of pictures, masks and prompts differ.
    """
    latent_channels = pipe.vae.config.latent_channels
    pixels = pipe.image_processor.preprocess(
        _in_rgb(plain_picture(image), latent_channels), height=canvas.height, width=canvas.width
    )
    # The memory layout picks the convolution kernel, and diffusers' pipelines encode contiguous pictures.
    pixels = pixels.contiguous()
    if pixels.shape[1] == latent_channels:
        _check_latents(
            pixels, canvas, takes_pixels=controlnet.input_hint_block is not None or inpaint_mask is not None
        )
    if controlnet.input_hint_block is not None:
        return canvas.per_sample(pixels).to(canvas.device, canvas.dtype)
    if inpaint_mask is None:
        return pack_latents(_encode(pipe, canvas, pixels, generator))
    masks = canvas.per_sample(
        torch.stack([mask_to_pixels(mask, canvas) for mask in list_regions(inpaint_mask)])[:, None]
    )
    latents = _encode(pipe, canvas, torch.where(masks, -1.0, canvas.per_sample(pixels)), generator)
    factor = canvas.token_size // 2
    kept = 1 - masks[:, :, ::factor, ::factor].to(latents)
    return pack_latents(torch.cat([latents, kept.expand(latents.shape[0], -1, -1, -1)], dim=1))


def _encode(
    pipe: Encoders,
    canvas: Canvas,
    pixels: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> torch.Tensor:
    vae = pipe.vae
    if pixels.shape[1] == vae.config.latent_channels:
        latents = pixels
    elif generator is None:
        latents = encode_image(vae, pixels.to(execution_device(vae), vae.dtype))
    else:
        # One sample of the posterior for each picture that is drawn, in the order of diffusers.
        repeated = _spread(pixels, canvas).expand(canvas.num_samples, -1, -1, -1)
        latents = sample_image_latents(vae, repeated.to(execution_device(vae), vae.dtype), generator)
    return _spread(latents, canvas).to(canvas.device, canvas.dtype)


def _spread(tensor: torch.Tensor, canvas: Canvas) -> torch.Tensor:
    return tensor if tensor.shape[0] == canvas.num_samples else canvas.per_sample(tensor)


def _in_rgb(picture: Any, latent_channels: int) -> Any:
    """Arrays and tensors with three channels: gray is repeated and alpha dropped. Latents stay as they are."""
    if isinstance(picture, (list, tuple)):
        return [_in_rgb(each, latent_channels) for each in picture]
    if not isinstance(picture, (np.ndarray, torch.Tensor)):
        return picture
    axis = -1 if isinstance(picture, np.ndarray) else -3
    given: Any = picture
    if given.ndim == 2:
        given = given[..., None] if axis == -1 else given[None]
    channels = given.shape[axis] if given.ndim in (3, 4) else 0
    if channels == 3 or (axis == -3 and channels == latent_channels):
        return given
    if channels not in (1, 4):
        raise ValueError(
            f"A control picture has the shape {tuple(picture.shape)}; expected (height, width, channels) for an array "
            f"or (channels, height, width) for a tensor, or a batch of them, with 1, 3 or 4 channels; tensors of "
            f"{latent_channels} channels are VAE latents."
        )
    wanted = [0, 0, 0] if channels == 1 else [0, 1, 2]
    return given[..., wanted] if axis == -1 else given[..., wanted, :, :]


def _check_latents(latents: torch.Tensor, canvas: Canvas, takes_pixels: bool) -> None:
    if takes_pixels:
        raise ValueError(
            "The control picture was given as VAE latents, but XLabs' and inpainting ControlNets take a picture in "
            "pixels. Decode it first."
        )
    factor = canvas.token_size // 2
    expected = (canvas.height // factor, canvas.width // factor)
    if tuple(latents.shape[2:]) != expected:
        raise ValueError(
            f"The latents of the control picture are {tuple(latents.shape[2:])} (height, width); expected {expected} "
            f"for a picture of {canvas.height} x {canvas.width} pixels."
        )
