"""Small images of latents without the VAE's decoder, by a linear map that its encoder teaches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from .._compat import execution_device
from ..canvas import encode_image


# Colours of this many patches are fitted; each is two latents wide.
ROWS, COLUMNS, PATCH = 16, 16, 16


class PreviewMap:
    """From the channels of scaled latents to colours: the linear map that is best for patches of random colours.

    Args:
        weights (`torch.Tensor` of shape `(channels + 1, 3)`): The map; the last row is added.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights

    @classmethod
    @torch.no_grad()
    def of(cls, vae: Any) -> PreviewMap:
        """Fit the map of a VAE, by encoding one image of 256 x 256 pixels.

        Args:
            vae (`AutoencoderKL`): The VAE, wherever its weights are.

        Returns:
            `PreviewMap`
        """
        generator = torch.Generator().manual_seed(0)
        colours = 2 * torch.rand(1, 3, ROWS, COLUMNS, generator=generator) - 1
        # Blocks, which have edges, and transitions between colours.
        size = (ROWS * PATCH, COLUMNS * PATCH)
        patches = torch.cat([F.interpolate(colours, size), F.interpolate(colours, size, mode="bilinear")])
        latents = encode_image(vae, patches.to(execution_device(vae), vae.dtype)).float().cpu()
        wanted = F.avg_pool2d(patches, patches.shape[-1] // latents.shape[-1])
        columns = [each.movedim(1, -1).flatten(0, -2) for each in (latents, wanted)]
        return cls(torch.linalg.lstsq(_with_ones(columns[0]), columns[1]).solution)

    def image(self, latents: torch.Tensor) -> Image.Image:
        """Return latents as an image.

        Args:
            latents (`torch.Tensor` of shape `(channels, height, width)`): Scaled latents.

        Returns:
            `PIL.Image.Image` of `width` x `height` pixels.
        """
        colours = _with_ones(latents.float().cpu().movedim(0, -1)) @ self.weights
        return Image.fromarray(((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def _with_ones(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
