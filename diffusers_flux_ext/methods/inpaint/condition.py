"""Inpainting with any set of conditions: the outside a mask is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import logging

from ..._devices import execution_device
from ...canvas import Canvas, encode_image, pack_latents
from ...condition import OUTSIDE_OF_MASK, Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.images import ImageInputs, read_images, read_pixels
from ...inputs.masks import RegionMask, check_regions, list_regions, mask_to_pixels
from ...sequence import Contribution


logger = logging.get_logger(__name__)

_IMAGE, _MASK = "`image` of InpaintRegion", "`mask` of InpaintRegion"


@dataclass(frozen=True, eq=False)
class InpaintRegion(FluxCondition):
    """Redraws a region of an image and keeps everything else, with any model and any other conditions.

    After every step the latents outside the mask are replaced by the image's, noised to the level that the loop
    has reached ([RePaint](https://huggingface.co/papers/2201.09865) without resampling, as `FluxInpaintPipeline`).
    After decoding the outside is pasted back, so that it is bit-equal to the image resized to the canvas.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The image, resized to the canvas; a list gives one per prompt. Floats in [0, 1] or integers up to 255.
        mask (`RegionMask` or a list of them):
            White is redrawn, black is kept; a list gives one per prompt. Resized by nearest neighbour.

    Raises:
        TypeError: if `image` is something else.
        ValueError: if `image` has a wrong shape, or values that are NaN, infinite or out of range.
    """

    image: ImageInputs
    mask: RegionMask | Sequence[RegionMask]

    def __post_init__(self) -> None:
        read_images(_IMAGE, self.image)
        check_regions(_MASK, self.mask)

    @property
    def exclusive(self) -> str:
        """The outside the mask: the source is always pasted back."""
        return OUTSIDE_OF_MASK

    def demand(self, prompt_tokens: int) -> Demand:
        """Inpainting adds nothing to a call of the transformer."""
        return Demand()

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the image, and resize the mask to pixels and latents.

        Args:
            pipe (`Encoders`): Gives the VAE and the image processor.
            canvas (`Canvas`): Gives the size and the noise that the loop starts from.

        Returns:
            `dict[str, torch.Tensor]`: `"source"` `(n, 3, height, width)` in [-1, 1], `"source_latents"` and
            `"latent_mask"` `(n, num_tokens, 64)`, `"pixel_mask"` `(n, 1, height, width)` and `"noise"`, where n is 1
            or the number of samples.

        Raises:
            ValueError: if the loop starts from given latents whose noise is not known.
        """
        if canvas.noise is None:
            raise ValueError(
                "`InpaintRegion` must know the noise that the loop starts from, but `latents` were given together "
                "with `image`. Leave out one of the two."
            )
        pixels = read_pixels(_IMAGE, self.image, pipe.image_processor, canvas.height, canvas.width)
        latents = encode_image(pipe.vae, pixels.to(execution_device(pipe.vae), pipe.vae.dtype))
        latents = canvas.per_sample(latents.to(canvas.device, canvas.dtype), _IMAGE)
        source = canvas.per_sample(pixels.to(canvas.device, torch.float32))
        pixel_mask = canvas.per_sample(self._pixel_masks(canvas), _MASK).to(canvas.device)
        factor = canvas.token_size // 2
        latent_mask = torch.nn.functional.max_pool2d(pixel_mask.float(), factor).expand(-1, latents.shape[1], -1, -1)
        return {
            "source": source,
            "source_latents": pack_latents(latents),
            "latent_mask": pack_latents(latent_mask) > 0,
            "pixel_mask": pixel_mask,
            "noise": canvas.noise,
        }

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return nothing: the work is done after each step and after decoding."""
        return Contribution()

    def after_step(
        self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep, latents: torch.Tensor
    ) -> torch.Tensor:
        """Restore the image outside the mask, at the noise level reached."""
        sigma = 0.0 if step.next_timestep is None else step.next_timestep[:, None, None].float()
        kept = (1 - sigma) * encoded["source_latents"].float() + sigma * encoded["noise"].float()
        return torch.where(encoded["latent_mask"], latents, kept.to(latents.dtype))

    def after_decode(self, encoded: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Paste the outside the mask back, in float32 so that it stays unchanged."""
        return torch.where(encoded["pixel_mask"], images.float(), encoded["source"].to(images.device))

    def _pixel_masks(self, canvas: Canvas) -> torch.Tensor:
        masks = [mask_to_pixels(mask, canvas, _MASK) for mask in list_regions(self.mask, _MASK)]
        for index, inside in enumerate(masks):
            if not inside.any():
                logger.warning(
                    f"Mask {index} of `InpaintRegion` is black everywhere, so nothing will be redrawn there."
                )
        return torch.stack(masks)[:, None]
