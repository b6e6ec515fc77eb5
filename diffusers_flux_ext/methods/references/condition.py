"""Any number of reference images as tokens of their own (FLUX.1 Kontext)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image

from ..._compat import PREFERRED_KONTEXT_RESOLUTIONS
from ..._devices import execution_device
from ...canvas import Canvas, encode_image, pack_latents
from ...condition import REFERENCE_POSITIONS, Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...former_arguments import former_arguments
from ...inputs.checks import check_choice, check_flag
from ...inputs.images import ImageInput, read_images
from ...inputs.numbers import read_count, read_numbers
from ...inputs.token_grids import evenly_spread
from ...sequence import AttentionRule, Contribution, TokenGroup
from . import MEGAPIXEL_TOKENS


PIXELS_PER_TOKEN, LATENT_CHANNELS = 16, 16


Layout = Literal["index", "offset", "same"]
_IMAGES = "`images` of ReferenceImages"


@former_arguments(strengths="scale")
@dataclass(frozen=True, eq=False)
class ReferenceImages(FluxCondition):
    """Reference images for FLUX.1 Kontext and models trained like it.

    See the [paper](https://huggingface.co/papers/2506.15742). Each image becomes a group of tokens after those of the
    canvas, in both branches of classifier-free guidance. One image with the defaults is what
    [`~diffusers.FluxKontextPipeline`] computes.

    Args:
        images (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The references. An entry that is itself a list, or a tensor or array of four axes, gives one image per
            prompt; these take the size of the first. Floats in [0, 1] or integers up to 255; a tensor of four axes
            with 16 channels is taken as scaled VAE latents.
        layout (`"index"`, `"offset"` or `"same"`, defaults to `"index"`):
            Rotary positions `(t, row, column)`. `"index"`: reference i is at t = 1 + i. `"offset"`: all are at t = 1,
            side by side. `"same"`: all are at t = 1 from row and column 0, as in the reference implementation, so
            they lie on top of each other. For one image the three are the same.
        scale (`float` or `Sequence[float]`, *optional*):
            For all, or per reference, in [0, 1]: the share of its tokens, evenly spread, that everything else may see.
            The reference's own tokens always see each other. 1 adds no attention rule; 0 removes the reference.
        max_area (`int`, *optional*):
            Larger references are shrunk to at most this many pixels, at least one token each.
        preferred_size (`bool`, defaults to `True`):
            Stretch references to the preferred size of Kontext with the nearest aspect ratio, about one megapixel, as
            diffusers does. Otherwise they keep their size, rounded down to whole tokens.

    Raises:
        TypeError: if a scale or `max_area` is not a number.
        ValueError: if there is no image, or an argument is out of range.
    """

    images: ImageInput | Sequence[ImageInput | Sequence[ImageInput]]
    layout: Layout = "index"
    scale: float | Sequence[float] | None = None
    max_area: int | None = None
    preferred_size: bool = True

    shared = ("ids_*", "visible_*")

    def __post_init__(self) -> None:
        check_choice("`layout` of ReferenceImages", self.layout, get_args(Layout))
        check_flag("`preferred_size` of ReferenceImages", self.preferred_size)
        if not self._references or any(reference is None for reference in self._references):
            raise ValueError("`images` of ReferenceImages holds no image, or None. Leave the condition out instead.")
        if self.max_area is not None:
            read_count("`max_area` of ReferenceImages", self.max_area, 1, 10**9)
        for reference in self._references:
            _read(reference)
        self._scales()

    @property
    def exclusive(self) -> str:
        """Two sets would share rotary positions."""
        return REFERENCE_POSITIONS

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the tokens of every reference that is seen."""
        seen = [each for each, scale in zip(self._references, self._scales()) if scale > 0]
        most = math.inf if self.max_area is None else self.max_area // PIXELS_PER_TOKEN**2
        tokens = [MEGAPIXEL_TOKENS if self.preferred_size else _count_tokens(each) for each in seen]
        return Demand(
            reference_tokens=int(sum(min(each, most) for each in tokens)),
            masked=any(0 < each < 1 for each in self._scales()),
        )

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the references.

        Args:
            pipe (`Encoders`): Gives the VAE and the image processor.
            canvas (`Canvas`): Gives the batch, the device and the data type; its size does not matter.

        Returns:
            `dict[str, torch.Tensor]`: for each reference i of a scale above 0, `"tokens_i"` `(1 or num_samples,
            length, 64)`, `"ids_i"` `(length, 3)` and, below 1, `"visible_i"` `(length,)`.

        Raises:
            ValueError: if an image is smaller than a token, or there is not one per prompt.
        """
        encoded, column = {}, 0
        for index, (reference, scale) in enumerate(zip(self._references, self._scales())):
            image = _read(reference, pipe.vae.config.latent_channels, values=False)
            rows, columns = self._grid(pipe, canvas, image)
            if scale > 0:
                latents = _latents(pipe, image, (rows * canvas.token_size, columns * canvas.token_size))
                encoded[f"tokens_{index}"] = pack_latents(
                    canvas.per_sample(latents.to(canvas.device, canvas.dtype), _IMAGES)
                )
                start = (1 + index * (self.layout == "index"), 0, column * (self.layout == "offset"))
                # In float32: bfloat16 has no odd numbers above 256, which columns side by side reach.
                ids = torch.cartesian_prod(*(torch.arange(size) for size in (1, rows, columns)))
                encoded[f"ids_{index}"] = (ids + torch.tensor(start)).to(canvas.device, torch.float32)
            if 0 < scale < 1:
                encoded[f"visible_{index}"] = evenly_spread(rows, columns, scale)
            column += columns
        return encoded

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the references' tokens, and who may see them."""
        groups, rules = [], []
        for index in sorted(int(name.removeprefix("tokens_")) for name in encoded if name.startswith("tokens_")):
            name = f"reference_{index}"
            groups.append(TokenGroup(name, encoded[f"tokens_{index}"], encoded[f"ids_{index}"]))
            if f"visible_{index}" in encoded:
                rules.append(AttentionRule("*", name, encoded[f"visible_{index}"][None, None]))
        return Contribution(reference=groups, rules=rules)

    @property
    def _references(self) -> list[Any]:
        return list(self.images) if isinstance(self.images, (list, tuple)) else [self.images]

    def _scales(self) -> list[float]:
        given, count = 1.0 if self.scale is None else self.scale, len(self._references)
        return read_numbers("`scale` of ReferenceImages", given, count, "per reference", 0, 1)

    def _grid(self, pipe: Encoders, canvas: Canvas, image: Any) -> tuple[int, int]:
        token = canvas.token_size
        if _is_latents(pipe, image):
            return image.shape[2] // 2, image.shape[3] // 2
        first = image[0] if isinstance(image, list) else image
        height, width = pipe.image_processor.get_default_height_width(first)
        if min(height, width) < token:
            raise ValueError(
                f"{_IMAGES} holds one that is smaller than a token of {token} x {token} pixels. Enlarge it."
            )
        if self.preferred_size:
            ratio = width / height
            _, width, height = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        shrink = min(1.0, math.sqrt((self.max_area or math.inf) / (height * width)))
        return max(1, int(height * shrink) // token), max(1, int(width * shrink) // token)


def _is_latents(pipe: Encoders, image: Any) -> bool:
    return isinstance(image, torch.Tensor) and image.shape[1] == pipe.vae.config.latent_channels


def _read(reference: Any, latent_channels: int | None = None, values: bool = True) -> Any:
    # A tensor of four axes and other channels than pixels have may be latents; the VAE knows.
    axes, channels = getattr(reference, "ndim", 0), getattr(reference, "shape", (0, 0))
    allowed = latent_channels if latent_channels is not None else channels[1] if axes == 4 else None
    return _with_batch(read_images(_IMAGES, reference, allowed if axes == 4 else None, values))


def _with_batch(image: Any) -> Any:
    if isinstance(image, list):
        parts = [_with_batch(part) for part in image]
        return torch.cat(parts) if all(isinstance(part, torch.Tensor) for part in parts) else parts
    return image if getattr(image, "ndim", 4) == 4 else image[None]


def _latents(pipe: Encoders, image: Any, size: tuple[int, int]) -> torch.Tensor:
    if _is_latents(pipe, image):
        return image[..., : image.shape[2] // 2 * 2, : image.shape[3] // 2 * 2].contiguous()
    pixels = pipe.image_processor.preprocess(image, *size)
    return encode_image(pipe.vae, pixels.to(execution_device(pipe.vae), pipe.vae.dtype))


def _count_tokens(image: Any) -> int:
    """Count the tokens of a reference in its own size; an unknown size counts as a megapixel."""
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    if isinstance(first, Image.Image):
        width, height = first.size
    elif isinstance(first, torch.Tensor) and first.ndim in (3, 4):
        height, width = first.shape[-2:]
        if first.ndim == 4 and first.shape[1] == LATENT_CHANNELS:
            height, width = height * PIXELS_PER_TOKEN // 2, width * PIXELS_PER_TOKEN // 2
    else:
        return MEGAPIXEL_TOKENS
    return (height // PIXELS_PER_TOKEN) * (width // PIXELS_PER_TOKEN)
