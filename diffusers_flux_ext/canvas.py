"""The canvas, and conversions between images, latents and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from ._compat import retrieve_latents


@dataclass(frozen=True)
class Canvas:
    """What is being drawn: the size, the batch and where the tensors live.

    Args:
        height (`int`): Pixels, a multiple of `token_size`.
        width (`int`): Pixels, a multiple of `token_size`.
        batch_size (`int`): Number of prompts.
        num_images_per_prompt (`int`): Images per prompt; samples of one prompt are adjacent.
        device (`torch.device`): Where the loop runs.
        dtype (`torch.dtype`): Data type of the latents.
        token_size (`int`, defaults to 16): Pixels per token side, twice the VAE's factor.
        max_sequence_length (`int`, defaults to 512): Text tokens of a prompt.
        mask_padding (`bool`, defaults to `False`): Whether the padding of texts is hidden.
        noise (`torch.Tensor` of shape `(num_samples, num_tokens, 64)`, *optional*):
            The packed noise that the loop starts from, where it is known.
        guided (`bool`, defaults to `False`): Whether there is an unconditional branch.
    """

    height: int
    width: int
    batch_size: int
    num_images_per_prompt: int
    device: torch.device
    dtype: torch.dtype
    token_size: int = 16
    max_sequence_length: int = 512
    mask_padding: bool = False
    noise: torch.Tensor | None = None
    guided: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.height // self.token_size, self.width // self.token_size

    @property
    def num_tokens(self) -> int:
        """Tokens of the target."""
        return self.grid[0] * self.grid[1]

    @property
    def num_samples(self) -> int:
        """Images drawn at once."""
        return self.batch_size * self.num_images_per_prompt

    def per_sample(self, tensor: torch.Tensor, what: str = "A condition") -> torch.Tensor:
        """Repeat a tensor of one entry per prompt for every image; a tensor of batch 1 is returned unchanged.

        Args:
            tensor (`torch.Tensor` of shape `(1 or batch_size, ...)`): One entry for all, or one per prompt.
            what (`str`): What it was made of, for errors, such as "`image` of FillMask".

        Returns:
            `torch.Tensor` of shape `(1 or num_samples, ...)`.

        Raises:
            ValueError: if there is another number of entries.
        """
        if tensor.shape[0] == 1:
            return tensor
        if tensor.shape[0] != self.batch_size:
            raise ValueError(
                f"{what} gives inputs for {tensor.shape[0]} samples, but there are {self.batch_size} prompts. Give "
                f"one set of inputs for all prompts or one per prompt."
            )
        return tensor.repeat_interleave(self.num_images_per_prompt, dim=0)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Pack `(batch, channels, height, width)` into tokens `(batch, height/2 * width/2, channels * 4)`."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4)


def encode_image(vae: AutoencoderKL, image: torch.Tensor) -> torch.Tensor:
    """Encode an image to scaled VAE latents: the mean of the posterior, not a sample.

    Args:
        vae (`AutoencoderKL`): The VAE.
        image (`torch.Tensor` of shape `(batch, 3, height, width)`): In [-1, 1].

    Returns:
        `torch.Tensor` of shape `(batch, 16, height/8, width/8)`.
    """
    latents = retrieve_latents(vae.encode(image), sample_mode="argmax")
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def sample_image_latents(
    vae: AutoencoderKL, image: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
) -> torch.Tensor:
    """Encode an image to scaled VAE latents, sampled from the posterior as in diffusers' image-to-image.

    Args:
        vae (`AutoencoderKL`): The VAE.
        image (`torch.Tensor` of shape `(batch, 3, height, width)`): In [-1, 1].
        generator (`torch.Generator` or a list of one per image, *optional*): Source of the sample.

    Returns:
        `torch.Tensor` of shape `(batch, 16, height/8, width/8)`.

    Raises:
        ValueError: if the numbers of generators and images differ.
    """
    if isinstance(generator, Sequence):
        if len(generator) != image.shape[0]:
            raise ValueError(
                f"There are {len(generator)} generators to sample the latents of {image.shape[0]} images. Give one "
                f"`generator`, or a list of one for each image."
            )
        parts = [
            retrieve_latents(vae.encode(part), each) for part, each in zip(image.split(1), generator, strict=True)
        ]
        latents = torch.cat(parts)
    else:
        latents = retrieve_latents(vae.encode(image), generator)
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def image_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, images: int, num_samples: int
) -> torch.Generator | Sequence[torch.Generator] | None:
    """Return the generators that sample the latents of images: the first of each image's samples, as in diffusers.

    Args:
        generator (`torch.Generator` or a list of one per sample, *optional*): What the user gave.
        images (`int`): Number of images to encode; one may serve several samples.
        num_samples (`int`): Number of samples of the call.

    Returns:
        `torch.Generator`, a list of one per image, or `None`.

    Raises:
        ValueError: if the length of a list is not the number of samples.
    """
    if not isinstance(generator, Sequence):
        return generator
    if len(generator) != num_samples:
        raise ValueError(
            f"There are {len(generator)} generators for {num_samples} samples. Give one, or one per sample."
        )
    return generator[:images]


def noised_image(
    image_latents: torch.Tensor,
    batch_size: int,
    num_images_per_prompt: int,
    timestep: torch.Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return starting latents of image-to-image, and their noise.

    Args:
        image_latents (`torch.Tensor` of shape `(images, 16, height/8, width/8)`): Scaled latents.
        batch_size (`int`): Number of prompts.
        num_images_per_prompt (`int`): Samples per prompt, which are adjacent.
        timestep (`torch.Tensor` of shape `()`): The scheduler's timestep to start from.
        scheduler (`FlowMatchEulerDiscreteScheduler`): Mixes latents and noise.
        generator (`torch.Generator` or a list, *optional*): Source of the noise.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: packed latents and packed noise, each `(num_samples, length, 64)`.

    Raises:
        ValueError: if there is neither a single image nor one per prompt.
    """
    num_samples, images = batch_size * num_images_per_prompt, image_latents.shape[0]
    if images not in (1, batch_size, num_samples):
        raise ValueError(
            f"`image` of the call: {images} images cannot be spread over {batch_size} prompts. Give one, or one "
            f"per prompt."
        )
    image_latents = image_latents.repeat_interleave(num_samples // images, dim=0)
    noise = randn_tensor(
        image_latents.shape, generator=generator, device=image_latents.device, dtype=image_latents.dtype
    )
    latents = scheduler.scale_noise(image_latents, timestep.repeat(num_samples), noise)
    return pack_latents(latents), pack_latents(noise)
