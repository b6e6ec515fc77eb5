"""Preparing the arguments of a call: size, prompts, IP-Adapter pictures, schedule and starting latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import logging

from .._compat import calculate_shift, retrieve_timesteps
from ..latents import noised_image, sample_image_latents
from ..schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler


if TYPE_CHECKING:
    from .pipeline_flux_conditioned import FluxConditionedPipeline


logger = logging.get_logger(__name__)


def canvas_size(pipe: FluxConditionedPipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, rounded down to whole tokens with a warning that names the size used."""
    default = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = int(height or default), int(width or default)
    token = 2 * pipe.vae_scale_factor
    used_height, used_width = height // token * token, width // token * token
    if min(used_height, used_width) < token:
        raise ValueError(
            f"`height` and `width` must be at least {token} pixels, but {height} x {width} (height x width) came."
        )
    if (used_height, used_width) != (height, width):
        logger.warning(
            f"`height` and `width` have to be divisible by {token} but are {height} and {width}. The picture will be "
            f"{used_height} high and {used_width} wide."
        )
    return used_height, used_width


def count_prompts(prompt: str | list[str] | None, prompt_embeds: Any) -> int:
    """How many prompts a call has, given as texts or as embeddings."""
    if isinstance(prompt, str):
        return 1
    return len(prompt_embeds if prompt is None else prompt)


def check_same_shape(prompt_embeds: torch.Tensor | None, negative_prompt_embeds: torch.Tensor | None) -> None:
    """Raise a `ValueError` when embeddings of both branches are given and their shapes differ."""
    if prompt_embeds is None or negative_prompt_embeds is None:
        return
    if prompt_embeds.shape != negative_prompt_embeds.shape:
        raise ValueError(
            f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape when passed directly, but "
            f"{tuple(prompt_embeds.shape)} and {tuple(negative_prompt_embeds.shape)} came."
        )


def matching_negative(negative: str | list[str] | None, batch_size: int) -> str | list[str] | None:
    """One negative prompt serves every prompt of the batch."""
    if isinstance(negative, str) and batch_size > 1:
        return [negative] * batch_size
    if isinstance(negative, list) and len(negative) == 1:
        return negative * batch_size
    if isinstance(negative, list) and len(negative) != batch_size:
        raise ValueError(
            f"There are {batch_size} prompts but {len(negative)} negative prompts. Give one for all or one per prompt."
        )
    return negative


def ip_adapter_kwargs(
    pipe: FluxConditionedPipeline,
    images: tuple[Any, Any],
    embeds: tuple[Any, Any],
    height: int,
    width: int,
    device: torch.device,
    num_samples: int,
    guided: bool,
) -> list[dict[str, Any]]:
    """The IP-Adapter's attention arguments of the conditional and the unconditional branch.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        images (`tuple`): Pictures of the two branches.
        embeds (`tuple`): Embeddings of the two branches.
        height (`int`): Of the canvas, for the zero picture that stands in for a branch without inputs.
        width (`int`): Of the canvas.
        device (`torch.device`): Where the embeddings go.
        num_samples (`int`): Samples of the batch.
        guided (`bool`): Whether there is an unconditional branch; its inputs are not encoded otherwise.

    Returns:
        `list[dict[str, Any]]`: empty dicts without an IP-Adapter input.
    """
    if all(value is None for value in (*images, *embeds)):
        return [{}, {}]
    kwargs: list[dict[str, Any]] = []
    for image, embed in list(zip(images, embeds))[: 1 + guided]:
        if image is None and embed is None:
            blank = np.zeros((width, height, 3), dtype=np.uint8)
            image = [blank] * pipe.transformer.encoder_hid_proj.num_ip_adapters
        prepared = pipe.prepare_ip_adapter_image_embeds(image, embed, device, num_samples)
        kwargs.append({"ip_adapter_image_embeds": prepared})
    return kwargs if guided else [*kwargs, {}]


def set_timesteps(
    pipe: FluxConditionedPipeline,
    num_inference_steps: int,
    sigmas: Sequence[float] | None,
    strength: float | None,
    num_tokens: int,
    device: torch.device,
) -> torch.Tensor:
    """Set the scheduler's timesteps as diffusers' pipelines do, or on the grid of [`FluxFlowMatchScheduler`].

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline, whose scheduler is set.
        num_inference_steps (`int`): Number of steps.
        sigmas (`Sequence[float]`, *optional*): Noise levels before the shift, in place of the default grid.
        strength (`float`, *optional*): Strength of image-to-image, in [0, 1].
        num_tokens (`int`): Tokens of the target, for the resolution-dependent shift.
        device (`torch.device`): Where the timesteps go.

    Returns:
        `torch.Tensor` of shape `(steps,)`: the timesteps of the loop.
    """
    scheduler = pipe.scheduler
    own_grid = isinstance(scheduler, FluxFlowMatchScheduler) and scheduler.config.base_grid == "diffsynth"
    config = scheduler.config
    mu = calculate_shift(
        num_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    if own_grid and sigmas is None:
        scheduler.set_timesteps(
            num_inference_steps, device=device, mu=mu, denoising_strength=1.0 if strength is None else strength
        )
        scheduler.set_begin_index(0)
        return scheduler.timesteps
    grid: Any = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps) if sigmas is None else sigmas
    if config.get("use_flow_sigmas", False):
        grid = None
    timesteps, num_steps = retrieve_timesteps(scheduler, num_inference_steps, device, sigmas=grid, mu=mu)
    start = 0 if strength is None else int(max(num_steps - min(num_steps * strength, num_steps), 0))
    scheduler.set_begin_index(start * scheduler.order)
    remaining = timesteps[start * scheduler.order :]
    if len(remaining) < 1:
        raise ValueError(
            f"With strength={strength} and {num_inference_steps} steps no step is left. Raise one of them."
        )
    return remaining


def starting_latents(
    pipe: FluxConditionedPipeline,
    image: Any,
    latents: torch.Tensor | None,
    timestep: torch.Tensor,
    size: tuple[int, int],
    num_samples: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Packed latents to start from, their ids, and the noise in them where it is known.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        image (*optional*): The picture of image-to-image, or its scaled latents `(n, 16, height/8, width/8)`.
        latents (`torch.Tensor` of shape `(num_samples, num_tokens, 64)`, *optional*): Given packed latents.
        timestep (`torch.Tensor` of shape `()`): The first timestep.
        size (`tuple[int, int]`): Height and width in pixels.
        num_samples (`int`): Samples of the batch.
        dtype (`torch.dtype`): Data type of the latents.
        device (`torch.device`): Where they go.
        generator (*optional*): Source of the noise.

    Returns:
        `tuple`: latents `(num_samples, num_tokens, 64)`, ids `(num_tokens, 3)` and noise like the latents or `None`.
    """
    height, width = size
    channels = pipe.vae.config.latent_channels if pipe.vae is not None else pipe.transformer.config.in_channels // 4
    if image is None or latents is not None:
        prepared, ids = pipe.prepare_latents(num_samples, channels, height, width, dtype, device, generator, latents)
        return prepared, ids, prepared if image is None else None
    if isinstance(generator, list) and len(generator) != num_samples:
        raise ValueError(f"There are {len(generator)} generators for {num_samples} samples. Give one or one each.")
    token = 2 * pipe.vae_scale_factor
    ids = pipe._prepare_latent_image_ids(num_samples, height // token, width // token, device, dtype)
    pixels = pipe.image_processor.preprocess(image, height=height, width=width).to(torch.float32)
    pixels = pixels.to(device=device, dtype=dtype)
    if pixels.shape[1] != channels:
        pixels = sample_image_latents(pipe.vae, pixels, generator)
    prepared, noise = noised_image(pixels, num_samples, timestep, pipe.scheduler, generator)
    return prepared, ids, noise
