"""Small images of latents without the VAE's decoder, by a linear map that its encoder teaches."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .._devices import execution_device
from ..canvas import encode_image
from ..flux_shapes import render, sample_free_scene


SCENES, PATCHES, SIDE = 8, 16, 256


class PreviewMap:
    """From the channels of scaled latents to colours: the linear map that is best for some drawn images.

    Args:
        weights (`torch.Tensor` of shape `(channels + 1, 3)`): The map; the last row is added.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    @classmethod
    @torch.no_grad()
    def of(cls, vae: Any) -> PreviewMap:
        """Fit the map of a VAE, by encoding ten images.

        Args:
            vae (`AutoencoderKL`): The VAE, wherever its weights are.

        Returns:
            `PreviewMap`
        """
        latents, colours = [], []
        for images in (_scenes(), _patches()):
            encoded = encode_image(vae, images.to(execution_device(vae), vae.dtype)).float().cpu()
            latents.append(_in_rows(encoded))
            colours.append(_in_rows(F.avg_pool2d(images, images.shape[-1] // encoded.shape[-1])))
        return cls(torch.linalg.lstsq(_with_ones(torch.cat(latents)), torch.cat(colours)).solution)

    def image(self, latents: torch.Tensor) -> Image.Image:
        """Return latents as an image.

        Args:
            latents (`torch.Tensor` of shape `(channels, height, width)`): Scaled latents.

        Returns:
            `PIL.Image.Image` of `width` x `height` pixels.
        """
        colours = _with_ones(latents.float().cpu().movedim(0, -1)) @ self.weights
        return Image.fromarray(((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def _scenes() -> torch.Tensor:
    """Draw coloured shapes, which the embedded tiny model was trained on."""
    rng = random.Random(0)
    drawn = [np.array(render(sample_free_scene(rng, 3)).convert("RGB")) for _ in range(SCENES)]
    return torch.from_numpy(np.stack(drawn)).movedim(-1, 1).float() / 127.5 - 1


def _patches() -> torch.Tensor:
    """Draw patches of random colours, with edges and with transitions."""
    colours = 2 * torch.rand(1, 3, PATCHES, PATCHES, generator=torch.Generator().manual_seed(0)) - 1
    size = (SIDE, SIDE)
    return torch.cat([F.interpolate(colours, size), F.interpolate(colours, size, mode="bilinear")])


def _in_rows(images: torch.Tensor) -> torch.Tensor:
    return images.movedim(1, -1).flatten(0, -2)


def _with_ones(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
