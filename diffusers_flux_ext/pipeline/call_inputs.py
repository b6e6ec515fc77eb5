"""Preparing the arguments of a call: size, prompts, IP-Adapter images, schedule and starting latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import logging
from PIL import Image

from .._compat import calculate_shift, retrieve_timesteps
from ..canvas import Canvas, image_generators, noised_image, sample_image_latents
from ..inputs.images import read_pixels
from ..inputs.numbers import check_finite
from ..inputs.text import check_padding_mask
from ..schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
from .usual_call import SCHNELL_TEXT_TOKENS


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PromptInputs:
    """The prompt of one branch as given: texts, or embeddings.

    Args:
        prompt (`str` or `list[str]`, *optional*): For both text encoders.
        prompt_2 (`str` or `list[str]`, *optional*): For T5 in place of `prompt`.
        prompt_embeds (`torch.Tensor` of shape `(batch_size, length, 4096)`, *optional*): T5 hidden states.
        pooled_prompt_embeds (`torch.Tensor` of shape `(batch_size, 768)`, *optional*): CLIP's pooled output.
        mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*): 1 for tokens of `prompt_embeds`.
    """

    prompt: str | list[str] | None
    prompt_2: str | list[str] | None
    prompt_embeds: torch.Tensor | None
    pooled_prompt_embeds: torch.Tensor | None
    mask: torch.Tensor | None

    def named(self, prefix: str = "") -> dict[str, Any]:
        """Return all but the mask, by the names of the call's arguments."""
        return {f"{prefix}{name}": value for name, value in vars(self).items() if name != "mask"}

    def repeated_embeds(self, num_images_per_prompt: int) -> list[torch.Tensor | None]:
        """Repeat `prompt_embeds` and `pooled_prompt_embeds` for every image."""
        given = (self.prompt_embeds, self.pooled_prompt_embeds)
        return [each if each is None else each.repeat_interleave(num_images_per_prompt, dim=0) for each in given]

    def matching(self, batch_size: int, prefix: str = "") -> PromptInputs:
        """Expand to one text per prompt of the batch; raise a `ValueError` for other numbers."""
        return replace(
            self,
            prompt=one_per_prompt(f"`{prefix}prompt`", self.prompt, batch_size),
            prompt_2=one_per_prompt(f"`{prefix}prompt_2`", self.prompt_2, batch_size),
        )

    def check_embeds(self, pipe: FluxPipeline, batch_size: int, prefix: str = "") -> None:
        """Raise a `ValueError` unless embeddings fit the transformer and the number of prompts."""
        config, dtype = pipe.transformer.config, transformer_dtype(pipe.transformer)
        widths = {
            "prompt_embeds": ("length", config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }
        for name, sizes in widths.items():
            embeds, shape = getattr(self, name), (batch_size, *sizes)
            if embeds is None:
                continue
            if embeds.ndim != len(shape) or any(
                wanted not in ("length", found) for wanted, found in zip(shape, embeds.shape)
            ):
                raise ValueError(f"`{prefix}{name}` has the shape {tuple(embeds.shape)}; expected {shape}.")
            if dtype not in (None, embeds.dtype):
                raise ValueError(
                    f"`{prefix}{name}` is {embeds.dtype}, but the transformer computes in {dtype}. Convert it with "
                    f"`.to({dtype})`."
                )


def transformer_dtype(transformer: Any) -> torch.dtype | None:
    """Return the required data type of embeddings; `None` for quantised, cast or autocast layers."""
    layer = getattr(transformer, "context_embedder", None)
    weight: Any = getattr(layer, "weight", None)
    plain = type(layer) is torch.nn.Linear and type(weight) is torch.nn.Parameter and not torch.is_autocast_enabled()
    known = plain and weight.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return weight.dtype if known else None


def check_prompts(
    pipe: FluxPipeline,
    given: PromptInputs,
    negative: PromptInputs,
    batch_size: int,
    mask_padding: bool,
    guided: bool,
) -> None:
    """Check numbers, embeddings and masks of the two branches.

    Args:
        pipe (`FluxPipeline`): The pipeline, whose transformer the embeddings must fit.
        given (`PromptInputs`): The prompt.
        negative (`PromptInputs`): The negative prompt.
        batch_size (`int`): The number of prompts.
        mask_padding (`bool`): Whether padding is to be hidden.
        guided (`bool`): Whether the negative prompt is used; its embeddings then have the prompt's shape.

    Raises:
        TypeError: if a mask is not a boolean or integer tensor.
        ValueError: if embeddings or a mask have a wrong shape, are given without their counterpart, or are missing.
    """
    if guided:
        check_same_shape(given.prompt_embeds, negative.prompt_embeds)
    for prefix, inputs in (("", given), ("negative_", negative)):
        inputs.check_embeds(pipe, batch_size, prefix)
    for name, inputs in (("prompt_embeds", given), ("negative_prompt_embeds", negative)):
        check_padding_mask(name, inputs.mask, inputs.prompt_embeds, mask_padding)


def warn_of_long_texts(pipe: FluxPipeline, given: PromptInputs, max_sequence_length: int) -> None:
    """Warn if FLUX.1 schnell, which was trained with 256 text tokens, gets more; diffusers does not warn.

    Args:
        pipe (`FluxPipeline`): The pipeline.
        given (`PromptInputs`): The prompt.
        max_sequence_length (`int`): Text tokens of a prompt given as text.
    """
    length = max_sequence_length if given.prompt_embeds is None else given.prompt_embeds.shape[1]
    if length > SCHNELL_TEXT_TOKENS and is_schnell(pipe):
        logger.warning(
            f"FLUX.1 schnell was trained with {SCHNELL_TEXT_TOKENS} text tokens, got {length}. Set "
            f"`max_sequence_length={SCHNELL_TEXT_TOKENS}`; longer texts are cut there."
        )


def is_schnell(pipe: FluxPipeline) -> bool:
    """Whether a pipeline looks like FLUX.1 schnell: no guidance embedder, and a time grid without shift."""
    schedule = pipe.scheduler.config
    unshifted = not schedule.get("use_dynamic_shifting", False) and schedule.get("shift", 1.0) == 1.0
    return unshifted and not pipe.transformer.config.guidance_embeds


def image_processor_of(pipe: FluxPipeline) -> VaeImageProcessor:
    """Make the processor of the images of a call and of its conditions.

    Args:
        pipe (`FluxPipeline`): Gives the size of tokens and the VAE.

    Returns:
        `VaeImageProcessor`: it knows the latents' number of channels, since latents may be given instead of an image.
    """
    channels = pipe.vae.config.latent_channels if pipe.vae is not None else 16
    return VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor * 2, vae_latent_channels=channels)


def canvas_size(pipe: FluxPipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width in pixels, rounded down to whole tokens with a warning that names the size used."""
    default = pipe.default_sample_size * pipe.vae_scale_factor
    height, width = int(height or default), int(width or default)
    token = 2 * pipe.vae_scale_factor
    used_height, used_width = height // token * token, width // token * token
    if min(used_height, used_width) < token:
        raise ValueError(
            f"`height` and `width` must be at least {token} pixels, got {height} x {width} (height x width)."
        )
    if (used_height, used_width) != (height, width):
        logger.warning(
            f"`height` and `width` have to be divisible by {token} but are {height} and {width}. The image will be "
            f"{used_height} high and {used_width} wide."
        )
    return used_height, used_width


def count_prompts(prompt: str | list[str] | None, prompt_embeds: Any) -> int:
    """Count the prompts of a call, given as texts or as embeddings."""
    if isinstance(prompt, str):
        return 1
    return len(prompt_embeds if prompt is None else prompt)


def check_same_shape(prompt_embeds: torch.Tensor | None, negative_prompt_embeds: torch.Tensor | None) -> None:
    """Raise a `ValueError` when embeddings of both branches are given and their shapes differ."""
    if prompt_embeds is None or negative_prompt_embeds is None:
        return
    if prompt_embeds.shape != negative_prompt_embeds.shape:
        raise ValueError(
            f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape when passed directly, got "
            f"{tuple(prompt_embeds.shape)} and {tuple(negative_prompt_embeds.shape)}."
        )


def is_guided(true_cfg_scale: float, negative: PromptInputs) -> bool:
    """Whether a call has an unconditional branch; warns when a scale is given without a negative prompt."""
    given = negative.prompt is not None or negative.prompt_embeds is not None
    texts = [text for each in (negative.prompt, negative.prompt_2) for text in _listed(each)]
    if true_cfg_scale <= 1 and (any(texts) or negative.prompt_embeds is not None):
        logger.warning(
            f"The negative prompt has no effect at `true_cfg_scale={true_cfg_scale}`. Set `true_cfg_scale` above 1, "
            f"for example to 4; every step then runs the transformer twice."
        )
    if true_cfg_scale > 1 and not given:
        logger.warning(
            f"`true_cfg_scale={true_cfg_scale}` has no effect without `negative_prompt`; give an empty one at least."
        )
    return true_cfg_scale > 1 and given


def _listed(texts: str | list[str] | None) -> list[str]:
    return [] if texts is None else [texts] if isinstance(texts, str) else texts


def one_per_prompt(what: str, texts: str | list[str] | None, batch_size: int) -> str | list[str] | None:
    """Repeat one text for every prompt of the batch; raise a `ValueError` naming `what` for other numbers."""
    if isinstance(texts, str) and batch_size > 1:
        return [texts] * batch_size
    if isinstance(texts, list) and len(texts) == 1:
        return texts * batch_size
    if isinstance(texts, list) and len(texts) != batch_size:
        raise ValueError(
            f"There are {batch_size} prompts but {what} has {len(texts)} texts. Give one for all or one per prompt."
        )
    return texts


def ip_adapter_kwargs(
    pipe: FluxPipeline,
    images: tuple[Any, Any],
    embeds: tuple[Any, Any],
    canvas: Canvas,
    guided: bool,
) -> list[dict[str, Any]]:
    """Return the IP-Adapter's attention arguments of the conditional and the unconditional branch.

    Args:
        pipe (`FluxPipeline`): The pipeline.
        images (`tuple`): Images of the two branches.
        embeds (`tuple`): Embeddings of the two branches.
        canvas (`Canvas`): Gives the size of the zero image that stands in for a branch without inputs.
        guided (`bool`): Whether there is an unconditional branch; its inputs are not encoded otherwise.

    Returns:
        `list[dict[str, Any]]`: empty dicts without an IP-Adapter input.
    """
    names = (
        "ip_adapter_image",
        "negative_ip_adapter_image",
        "ip_adapter_image_embeds",
        "negative_ip_adapter_image_embeds",
    )
    given = {f"`{name}`": value for name, value in zip(names, (*images, *embeds)) if value is not None}
    if not given:
        return [{}, {}]
    if getattr(pipe.transformer, "encoder_hid_proj", None) is None:
        raise ValueError(
            f"{', '.join(given)} was given, but no IP-Adapter is loaded. Call `load_ip_adapter` first, or use "
            f"`IPAdapterImages`."
        )
    for name, value in given.items():
        _check_adapter_input(name, value)
    kwargs: list[dict[str, Any]] = []
    for image, embed in list(zip(images, embeds))[: 1 + guided]:
        if image is None and embed is None:
            blank = np.zeros((canvas.width, canvas.height, 3), dtype=np.uint8)
            image = [blank] * pipe.transformer.encoder_hid_proj.num_ip_adapters
        prepared = pipe.prepare_ip_adapter_image_embeds(image, embed, canvas.device, canvas.num_samples)
        kwargs.append({"ip_adapter_image_embeds": prepared})
    return kwargs if guided else [*kwargs, {}]


def _check_adapter_input(name: str, value: Any) -> None:
    """Check images, of any range since the vision processor normalises them, or embeddings; finite."""
    for part in value if isinstance(value, (list, tuple)) and value else [value]:
        if isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
            part = torch.from_numpy(part.astype(np.float32))
        if isinstance(part, (list, tuple)) and not name.endswith("embeds`"):
            _check_adapter_input(name, part)
        elif name.endswith("embeds`") or not isinstance(part, Image.Image):
            check_finite(name, part)


def set_timesteps(
    pipe: FluxPipeline,
    num_inference_steps: int,
    sigmas: Sequence[float] | None,
    strength: float | None,
    canvas: Canvas,
) -> torch.Tensor:
    """Set the scheduler's timesteps as diffusers' pipelines do, or on the grid of [`FluxFlowMatchScheduler`].

    Args:
        pipe (`FluxPipeline`): The pipeline, whose scheduler is set.
        num_inference_steps (`int`): Number of steps.
        sigmas (`Sequence[float]`, *optional*): Noise levels before the shift, in place of the default grid.
        strength (`float`, *optional*): Strength of image-to-image, in [0, 1].
        canvas (`Canvas`): Gives the number of tokens for the resolution-dependent shift, and the device.

    Returns:
        `torch.Tensor` of shape `(steps,)`: the timesteps of the loop.
    """
    scheduler = pipe.scheduler
    own_grid = isinstance(scheduler, FluxFlowMatchScheduler) and scheduler.config.base_grid == "diffsynth"
    config = scheduler.config
    mu = calculate_shift(
        canvas.num_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    if own_grid and sigmas is None and strength != 0:
        scheduler.set_timesteps(
            num_inference_steps, device=canvas.device, mu=mu, denoising_strength=1.0 if strength is None else strength
        )
        scheduler.set_begin_index(0)
        return scheduler.timesteps
    grid: Any = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps) if sigmas is None else sigmas
    if config.get("use_flow_sigmas", False):
        grid = None
    timesteps, num_steps = retrieve_timesteps(scheduler, num_inference_steps, canvas.device, sigmas=grid, mu=mu)
    start = 0 if strength is None else int(max(num_steps - min(num_steps * strength, num_steps), 0))
    scheduler.set_begin_index(start * scheduler.order)
    remaining = timesteps[start * scheduler.order :]
    if len(remaining) < 1:
        raise ValueError(
            f"With `strength` at {strength} and {num_inference_steps} for `num_inference_steps` no step is left. "
            f"Raise one of them."
        )
    return remaining


def starting_latents(
    pipe: FluxPipeline,
    image: Any,
    latents: torch.Tensor | None,
    timestep: torch.Tensor,
    canvas: Canvas,
    generator: torch.Generator | list[torch.Generator] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Prepare packed latents to start from, their ids, and the noise in them where it is known.

    Args:
        pipe (`FluxPipeline`): The pipeline.
        image (*optional*): The image of image-to-image, or its scaled latents `(n, 16, height/8, width/8)`.
        latents (`torch.Tensor` of shape `(num_samples, num_tokens, 64)`, *optional*): Given packed latents.
        timestep (`torch.Tensor` of shape `()`): The first timestep.
        canvas (`Canvas`): Size, batch, device and data type.
        generator (*optional*): Source of the noise.

    Returns:
        `tuple`: latents `(num_samples, num_tokens, 64)`, ids `(num_tokens, 3)` and noise like the latents or `None`.

    Raises:
        ValueError: if `latents` have another shape, or the numbers of images or generators do not fit the batch.
    """
    size, device, dtype = (canvas.height, canvas.width), canvas.device, canvas.dtype
    channels = pipe.vae.config.latent_channels if pipe.vae is not None else pipe.transformer.config.in_channels // 4
    expected = (canvas.num_samples, canvas.num_tokens, 4 * channels)
    if latents is not None and tuple(latents.shape) != expected:
        raise ValueError(
            f"`latents` has the shape {tuple(latents.shape)}, but packed latents of this call have the shape "
            f"(samples, tokens, channels) = {expected}."
        )
    if image is None or latents is not None:
        prepared, ids = pipe.prepare_latents(canvas.num_samples, channels, *size, dtype, device, generator, latents)
        return prepared, ids, prepared if image is None else None
    ids = pipe._prepare_latent_image_ids(canvas.num_samples, *canvas.grid, device, dtype)
    pixels = read_pixels("`image` of the call", image, pipe.image_processor, *size, allow_latents=True)
    pixels = pixels.to(torch.float32).to(device=device, dtype=dtype)
    own = image_generators(generator, pixels.shape[0], canvas.num_samples)
    if pixels.shape[1] != channels:
        pixels = sample_image_latents(pipe.vae, pixels, own)
    batch = (canvas.batch_size, canvas.num_images_per_prompt)
    prepared, noise = noised_image(pixels, *batch, timestep, pipe.scheduler, generator)
    return prepared, ids, noise
