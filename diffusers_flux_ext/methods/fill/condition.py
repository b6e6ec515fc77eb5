"""FLUX.1 Fill: inpainting and outpainting by a model that sees the masked image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ..._devices import execution_device
from ...canvas import Canvas, encode_image, image_generators, pack_latents, sample_image_latents
from ...condition import OUTSIDE_OF_MASK, Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.checks import check_flag, check_generators
from ...inputs.images import ImageInputs, read_images, read_pixels
from ...inputs.masks import RegionMask, check_regions, list_regions, mask_to_pixels
from ...sequence import Contribution


_IMAGE, _MASK = "`image` of FillMask", "`mask` of FillMask"


@dataclass(frozen=True, eq=False)
class FillMask(FluxCondition):
    """The image and the hole for FLUX.1-Fill, whose transformer takes 384 channels.

    See the [model card](https://huggingface.co/black-forest-labs/FLUX.1-Fill-dev). The hole is grey before the image
    is encoded; latents and mask become further channels of the canvas, in both branches of classifier-free guidance.
    Unlike [`InpaintRegion`], which works with any model, it puts nothing back while drawing.

    Args:
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The image, or one per prompt, stretched to the canvas. Floats in [0, 1] or integers up to 255.
        mask (`RegionMask` or a list of them):
            White is drawn, or one mask per prompt. PIL images in grey or RGB are stretched by Lanczos and thresholded
            at the middle grey, as in diffusers; everything else is read as in [`EntityRegions`].
        paste_back (`bool`, defaults to `True`):
            Paste the outside the mask back after decoding, so that it is bit-equal to the stretched image. At
            most one condition of a call may paste.
        generator (`torch.Generator` or a list of one per sample, *optional*):
            Sample the image's latents with it, as `FluxFillPipeline` does. By default their mean is taken.

    Raises:
        TypeError: if `generator` is something else.
        ValueError: if `image` or `mask` is `None`.
    """

    image: ImageInputs
    mask: RegionMask | Sequence[RegionMask]
    paste_back: bool = True
    generator: torch.Generator | Sequence[torch.Generator] | None = None

    def __post_init__(self) -> None:
        missing = [name for name in ("image", "mask") if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"`{'`, `'.join(missing)}` of FillMask is None. The model needs both; to draw the whole canvas, give "
                f"any image and the mask (0, 0, 1, 1)."
            )
        read_images(_IMAGE, self.image)
        check_regions(_MASK, self.mask)
        check_flag("`paste_back` of FillMask", self.paste_back)
        if self.generator is not None:
            check_generators("`generator` of FillMask", self.generator)

    @property
    def exclusive(self) -> str | None:
        """The outside the hole, if it is pasted back."""
        return OUTSIDE_OF_MASK if self.paste_back else None

    def demand(self, prompt_tokens: int) -> Demand:
        """Channels add no tokens."""
        return Demand()

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the image without the hole, and arrange the mask on the latents.

        Args:
            pipe (`Encoders`): Gives the VAE and the image processor.
            canvas (`Canvas`): Gives the size, the batch and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"channels"` `(n, num_tokens, 320)`, and `"source"` `(n, 3, height, width)` in
            [-1, 1] and `"hole"` `(n, 1, height, width)` for pasting, where n is 1 or the number of samples.

        Raises:
            ValueError: if the numbers of images, masks, generators and prompts differ.
        """
        pixels = read_pixels(_IMAGE, self.image, pipe.image_processor, canvas.height, canvas.width)
        pixels = pixels.to(torch.float32)
        hole = torch.stack([_hole(mask, canvas) for mask in list_regions(self.mask, _MASK)])[:, None]
        encoded = {
            "source": canvas.per_sample(pixels, _IMAGE).to(canvas.device),
            "hole": canvas.per_sample(hole, _MASK).to(canvas.device),
        }
        vae = pipe.vae
        masked = (pixels * (1 - hole.float())).to(execution_device(vae), vae.dtype)
        generator = image_generators(self.generator, masked.shape[0], canvas.num_samples)
        encode = encode_image if generator is None else partial(sample_image_latents, generator=generator)
        latents = canvas.per_sample(pack_latents(encode(vae, masked).to(canvas.device, canvas.dtype)))
        planes = torch.nn.functional.pixel_unshuffle(encoded["hole"].to(canvas.dtype), canvas.token_size // 2)
        parts = [latents, pack_latents(planes)]
        size = max(part.shape[0] for part in parts)
        return {**encoded, "channels": torch.cat([part.expand(size, -1, -1) for part in parts], dim=2)}

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the further channels of the canvas."""
        return Contribution(channels=[encoded["channels"]])

    def after_decode(self, encoded: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Paste the outside the hole back, in float32 so that it stays unchanged."""
        if not self.paste_back:
            return images
        return torch.where(encoded["hole"], images.float(), encoded["source"].to(images.device))


def _hole(mask: RegionMask, canvas: Canvas) -> torch.Tensor:
    if not isinstance(mask, Image.Image) or mask.mode not in ("L", "RGB"):
        return mask_to_pixels(mask, canvas, _MASK)
    processor = VaeImageProcessor(
        vae_scale_factor=canvas.token_size, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    return processor.preprocess(mask, height=canvas.height, width=canvas.width)[0, 0] > 0
