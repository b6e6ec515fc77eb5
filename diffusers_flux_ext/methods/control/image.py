"""Encoding an image, and a mask for inpainting, as the input of a ControlNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..._devices import execution_device
from ...canvas import Canvas, encode_image, pack_latents, sample_image_latents
from ...condition import Encoders
from ...inputs.images import read_pixels
from ...inputs.masks import RegionMask, list_regions, mask_to_pixels


def encode_control_image(
    pipe: Encoders,
    canvas: Canvas,
    controlnet: Any,
    image: Any,
    inpaint_mask: RegionMask | Sequence[RegionMask] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    names: tuple[str, str] = ("`image`", "`inpaint_mask`"),
) -> torch.Tensor:
    """Stretch an image to the canvas and encode it for a ControlNet.

    Args:
        pipe (`Encoders`): Gives the VAE and the image processor.
        canvas (`Canvas`): Gives the size, the batch and the data type.
        controlnet (`FluxControlNetModel`): The ControlNet; one with a hint block (XLabs) takes pixels.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The image, or one per prompt; a tensor with 16 channels is taken as scaled VAE latents.
        inpaint_mask (`RegionMask` or a list of them, *optional*):
            White is redrawn: the image is black there, and 1 - mask becomes a further latent channel, sampled at
            the first of the pixels that a latent pixel stands for.
        generator (`torch.Generator` or a list, *optional*): Sample the latents instead of taking their mean.
        names (`tuple[str, str]`): What image and mask are, for errors.

    Returns:
        `torch.Tensor` of shape `(1 or num_samples, num_tokens, 64 or 68)`, or `(1 or num_samples, 3, height, width)`
        in [-1, 1] for pixels.

    Raises:
        ValueError: if an image has a wrong shape, or the numbers of images, masks and prompts differ.
    """
    what, mask_name = names
    pixels = read_pixels(what, image, pipe.image_processor, canvas.height, canvas.width, allow_latents=True)
    # The memory layout picks the convolution kernel, and diffusers' pipelines encode contiguous images.
    pixels = pixels.contiguous()
    takes_pixels = controlnet.input_hint_block is not None or inpaint_mask is not None
    if takes_pixels and pixels.shape[1] == pipe.vae.config.latent_channels:
        raise ValueError(
            f"{what} was given as VAE latents, but XLabs' and inpainting ControlNets take an image in pixels. Decode "
            f"it first."
        )
    if controlnet.input_hint_block is not None:
        return canvas.per_sample(pixels, what).to(canvas.device, canvas.dtype)
    if inpaint_mask is None:
        return pack_latents(_encode(pipe, canvas, pixels, generator, what))
    masks = canvas.per_sample(
        torch.stack([mask_to_pixels(mask, canvas, mask_name) for mask in list_regions(inpaint_mask, mask_name)])[
            :, None
        ],
        mask_name,
    )
    latents = _encode(pipe, canvas, torch.where(masks, -1.0, canvas.per_sample(pixels, what)), generator, what)
    factor = canvas.token_size // 2
    kept = 1 - masks[:, :, ::factor, ::factor].to(latents)
    return pack_latents(torch.cat([latents, kept.expand(latents.shape[0], -1, -1, -1)], dim=1))


def _encode(
    pipe: Encoders,
    canvas: Canvas,
    pixels: torch.Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    what: str,
) -> torch.Tensor:
    vae = pipe.vae
    if pixels.shape[1] == vae.config.latent_channels:
        latents = pixels
    elif generator is None:
        latents = encode_image(vae, pixels.to(execution_device(vae), vae.dtype))
    else:
        # One sample of the posterior for each image that is drawn, in the order of diffusers.
        repeated = _spread(pixels, canvas, what).expand(canvas.num_samples, -1, -1, -1)
        latents = sample_image_latents(vae, repeated.to(execution_device(vae), vae.dtype), generator)
    return _spread(latents, canvas, what).to(canvas.device, canvas.dtype)


def _spread(tensor: torch.Tensor, canvas: Canvas, what: str) -> torch.Tensor:
    return tensor if tensor.shape[0] == canvas.num_samples else canvas.per_sample(tensor, what)
