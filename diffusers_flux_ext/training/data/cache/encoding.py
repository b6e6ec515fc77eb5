"""One sample through the frozen models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image

from ...._devices import execution_device
from ....canvas import Canvas, pack_latents
from ....condition import FluxCondition
from ....inputs.text import check_text_length, encoding_texts
from ...batch import TrainingSample
from ..records import LoadedSample


MakeConditions: TypeAlias = Callable[[Mapping[str, Any]], Sequence[FluxCondition]]
"""From a row, whose file columns hold images, to the conditions of a sample."""

Prompt: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""T5 hidden states `(1, text_length, 4096)` and CLIP's pooled output `(1, 768)`."""


@dataclass(frozen=True)
class EncodeOptions:
    """What stage one computes.

    Args:
        text_length (`int`, defaults to 512): T5 tokens of a caption.
        posterior (`bool`, defaults to `False`):
            Whether to keep the standard deviation of the latents, so that training can sample them.
        dtype (`torch.dtype`, *optional*):
            Data type of what text encoders and conditions return, by default T5's. Latents are float32.
        guided (`bool`, defaults to `False`):
            Whether conditions also encode what classifier-free guidance needs of them, for a teacher.

    Raises:
        ValueError: if an option is out of range.
    """

    text_length: int = 512
    posterior: bool = False
    dtype: torch.dtype | None = None
    guided: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.text_length <= 512:
            raise ValueError(f"`text_length` of EncodeOptions must be in [1, 512], got {self.text_length}.")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"`dtype` of EncodeOptions must be a floating point type, got {self.dtype}.")


def encode_sample(
    pipe: Any,
    make_conditions: MakeConditions,
    loaded: LoadedSample,
    options: EncodeOptions = EncodeOptions(),
    texts: Sequence[str] | None = None,
) -> TrainingSample:
    """Encode a sample, by itself, so that it does not depend on others whether a bit differs.

    Args:
        pipe (`FluxPipeline`): Gives the VAE, the text encoders and what the conditions need.
        make_conditions (`MakeConditions`): Makes the conditions of its row.
        loaded (`LoadedSample`): The sample.
        options (`EncodeOptions`): What is computed.
        texts (`Sequence[str]`, *optional*): The captions to encode; by default all of the sample's and the empty one.

    Returns:
        `TrainingSample`: on the CPU.

    Raises:
        ValueError: if the conditions do not fit the row; the message names it.
    """
    wanted = ["", *loaded.texts] if texts is None else texts
    prompts = {text: encode_prompt(pipe, text, options) for text in wanted}
    return encode_images(pipe, make_conditions, loaded, prompts, options)


@torch.no_grad()
def encode_prompt(pipe: Any, text: str, options: EncodeOptions = EncodeOptions()) -> Prompt:
    """Encode a caption with both text encoders.

    Args:
        pipe (`FluxPipeline`): Gives the encoders.
        text (`str`): The caption.
        options (`EncodeOptions`): Gives length and data type.

    Returns:
        `Prompt`: on the CPU.

    Raises:
        ValueError: if the pipeline has no text encoders.
    """
    if pipe.text_encoder is None or pipe.text_encoder_2 is None:
        raise ValueError("Captions are encoded with `text_encoder` and `text_encoder_2`, but the pipeline lacks one.")
    with encoding_texts(pipe, hide_padding=False):
        hidden_states, pooled, _ = pipe.encode_prompt(
            text, None, device=pipe._execution_device, max_sequence_length=options.text_length
        )
    check_text_length(hidden_states, options.text_length)
    dtype = options.dtype
    return tuple(_kept(each if dtype is None else each.to(dtype)) for each in (hidden_states, pooled))  # type: ignore[return-value]


@torch.no_grad()
def encode_images(
    pipe: Any,
    make_conditions: MakeConditions,
    loaded: LoadedSample,
    prompts: Mapping[str, Prompt],
    options: EncodeOptions = EncodeOptions(),
) -> TrainingSample:
    """Encode all of a sample but its captions; arguments and errors are those of [`encode_sample`].

    Args:
        pipe (`FluxPipeline`): Gives the VAE and what the conditions need.
        make_conditions (`MakeConditions`): Makes the conditions of its row.
        loaded (`LoadedSample`): The sample.
        prompts (`Mapping[str, Prompt]`): Its encoded captions.
        options (`EncodeOptions`): What is computed.

    Returns:
        `TrainingSample`
    """
    width, height = loaded.image.size
    latents, deviation = _encode_target(pipe, loaded.image, options.posterior)
    canvas = Canvas(
        height, width, 1, 1, pipe._execution_device, options.dtype or pipe.text_encoder_2.dtype,
        token_size=2 * pipe.vae_scale_factor, max_sequence_length=options.text_length, guided=options.guided,
    )  # fmt: skip
    try:
        encoded = [each.encode(pipe, canvas) for each in make_conditions(loaded.row)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{loaded.name}: {error}") from error
    return TrainingSample(
        loaded.index,
        height,
        width,
        latents,
        prompts,
        tuple({name: _kept(value) for name, value in each.items()} for each in encoded),
        deviation,
        None if loaded.mask is None else _token_weights(loaded.mask, canvas.token_size),
        loaded.weight,
        loaded.preserved,
        strength=loaded.strength,
    )


def _encode_target(pipe: Any, image: Image.Image, posterior: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(image).to(execution_device(vae), vae.dtype)
    distribution = vae.encode(pixels).latent_dist
    mean = (distribution.mean.float() - vae.config.shift_factor) * vae.config.scaling_factor
    deviation = distribution.std.float() * vae.config.scaling_factor if posterior else None
    return _kept(pack_latents(mean)), None if deviation is None else _kept(pack_latents(deviation))


def _token_weights(mask: Image.Image, token_size: int) -> torch.Tensor:
    """Return the mean of a mask over each token, `(1, length)` in [0, 1]."""
    pixels = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(1, 1, mask.height, mask.width)
    return torch.nn.functional.avg_pool2d(pixels.float() / 255, token_size).flatten(1)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy on the CPU that shares no memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()
