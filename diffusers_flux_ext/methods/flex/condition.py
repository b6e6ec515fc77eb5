"""Flex.2: inpainting and structure by further channels of the canvas."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..._devices import execution_device
from ...canvas import Canvas, encode_image, pack_latents
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.images import ImageInputs, read_images, read_pixels
from ...inputs.masks import RegionMask, check_regions, list_regions, mask_to_pixels
from ...inputs.numbers import read_number
from ...sequence import Contribution


_IMAGES, _MASK = ("inpaint_image", "control_image"), "`inpaint_mask` of FlexControl"


@dataclass(frozen=True, eq=False)
class FlexControl(FluxCondition):
    """The inputs of Flex.2 ([model card](https://huggingface.co/ostris/Flex.2-preview)), all of them optional.

    The transformer takes 196 channels and always needs this condition: without inputs its images are zeros and its
    mask is one, in both branches of classifier-free guidance.

    Args:
        inpaint_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            The image to redraw a part of, or one per prompt, stretched to the canvas.
        inpaint_mask (`RegionMask` or a list of them, *optional*):
            White is redrawn. PIL images are scaled to the latents bicubically, and grey counts as grey.
        control_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
            Lines, depth or a pose, or one per prompt, stretched to the canvas.
        control_strength (`float`, defaults to 0.5): Factor of the control image's latents; 0 turns control off.
        control_stop (`float`, defaults to 0.5):
            In [0, 1]: with n steps, the last one with the control image is number `int(control_stop * (n - 1))`,
            counted from 0.

    Raises:
        TypeError: if a number is something else.
        ValueError: if only one of `inpaint_image` and `inpaint_mask` is given, or a number is out of range.
    """

    inpaint_image: ImageInputs | None = None
    inpaint_mask: RegionMask | Sequence[RegionMask] | None = None
    control_image: ImageInputs | None = None
    control_strength: float = 0.5
    control_stop: float = 0.5

    def __post_init__(self) -> None:
        if (self.inpaint_image is None) != (self.inpaint_mask is None):
            raise ValueError(
                "`inpaint_image` of FlexControl and `inpaint_mask` of FlexControl belong together; one is missing."
            )
        read_number("`control_strength` of FlexControl", self.control_strength)
        read_number("`control_stop` of FlexControl", self.control_stop, 0, 1)
        if self.inpaint_mask is not None:
            check_regions(_MASK, self.inpaint_mask)
        for name in _IMAGES:
            if getattr(self, name) is not None:
                read_images(f"`{name}` of FlexControl", getattr(self, name))

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the images.

        Args:
            pipe (`Encoders`): Gives the VAE and the image processor.
            canvas (`Canvas`): Gives the size, the batch and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"inpaint"` `(n, num_tokens, 68)` and `"control"` `(n, num_tokens, 64)`, where n
            is 1 or the number of samples.

        Raises:
            ValueError: if the numbers of images, masks and prompts differ.
        """
        latents, control = (_latents(pipe, canvas, name, getattr(self, name)) for name in _IMAGES)
        mask = torch.ones_like(latents[:1, :1])
        if self.inpaint_mask is not None:
            masks = [_latent_mask(each, canvas) for each in list_regions(self.inpaint_mask, _MASK)]
            mask = canvas.per_sample(torch.stack(masks)[:, None], _MASK).to(latents)
        latents = latents * (1 - mask)
        inpaint = torch.cat([latents, mask.expand(latents.shape[0], -1, -1, -1)], dim=1)
        return {"inpaint": pack_latents(inpaint), "control": pack_latents(control) * self.control_strength}

    @property
    def exclusive(self) -> str:
        """The model has one set of control channels."""
        return "the channels of Flex.2"

    def demand(self, prompt_tokens: int) -> Demand:
        """Channels add no tokens."""
        return Demand()

    def reuse(self, step: DenoisingStep) -> Hashable:
        """Return one key while the control image is used, and another afterwards."""
        return step.branch, self._controls(step)

    def _controls(self, step: DenoisingStep) -> bool:
        return step.index <= int(self.control_stop * (step.num_steps - 1))

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the further channels of the canvas; those of the control image are zero after its last step."""
        control = encoded["control"] if self._controls(step) else torch.zeros_like(encoded["control"])
        size = max(encoded["inpaint"].shape[0], control.shape[0])
        parts = [part.expand(size, -1, -1) for part in (encoded["inpaint"], control)]
        return Contribution(channels=[torch.cat(parts, dim=2)])


def _latents(pipe: Encoders, canvas: Canvas, name: str, image: Any) -> torch.Tensor:
    if image is None:
        size = (2 * canvas.grid[0], 2 * canvas.grid[1])
        return torch.zeros(1, pipe.vae.config.latent_channels, *size, device=canvas.device, dtype=canvas.dtype)
    what = f"`{name}` of FlexControl"
    pixels = read_pixels(what, image, pipe.image_processor, canvas.height, canvas.width)
    latents = encode_image(pipe.vae, pixels.to(execution_device(pipe.vae), pipe.vae.dtype))
    return canvas.per_sample(latents.to(canvas.device, canvas.dtype), what)


def _latent_mask(mask: RegionMask, canvas: Canvas) -> torch.Tensor:
    if not isinstance(mask, Image.Image) or mask.mode not in ("L", "RGB"):
        mask = Image.fromarray(mask_to_pixels(mask, canvas, _MASK).numpy().astype(np.uint8) * 255)
    small = mask.convert("L").resize((2 * canvas.grid[1], 2 * canvas.grid[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)
