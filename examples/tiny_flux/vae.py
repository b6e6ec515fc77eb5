"""Stage "vae": an autoencoder for the world's images."""

import random

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.training import atomic_path

from .loop import train_stage
from .models import build_vae
from .settings import Draws, Settings


_CROP = 64
_WHOLE_IMAGES_FROM = 0.75
_KL_WEIGHT = 2e-4


def train_vae(settings: Settings) -> None:
    """Train the VAE and measure its latents' mean and spread.

    Crops of 64 x 64 pixels come first, whole images last. Pixels near edges weigh five times as much: they decide
    whether shapes can be told apart.

    Args:
        settings (`Settings`): The run; writes its `vae` folder.
    """
    torch.manual_seed(settings.seed)
    steps = settings.amounts.vae_steps
    with torch.device(settings.device):
        vae = build_vae()

    def loss_of(step: int, draws: Draws) -> torch.Tensor:
        whole = step >= _WHOLE_IMAGES_FROM * steps
        images = draw_images(draws.rng, 4 if whole else 16, crop=None if whole else _CROP)
        return _loss(vae, images.to(settings.device), draws)

    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    parameters = dict(vae.named_parameters())
    average = train_stage(settings, "vae", steps, parameters, [optimizer], loss_of, flat_until=0.0)
    with average.applied():
        _measure_latents(vae, settings)
        with atomic_path(settings.vae) as folder:
            vae.save_pretrained(folder)


def draw_images(rng: random.Random, count: int, crop: int | None = None) -> torch.Tensor:
    """Images of random scenes.

    Args:
        rng (`random.Random`): Source of randomness.
        count (`int`): How many.
        crop (`int`, *optional*): Cut out squares of this size, in pixels, that show an edge where possible.

    Returns:
        `torch.Tensor` of shape `(count, 3, height, width)`: in [-1, 1].
    """
    images = [np.asarray(flux_shapes.render(_scene(rng))) for _ in range(count)]
    if crop is not None:
        images = [_crop(image, crop, rng) for image in images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _scene(rng: random.Random) -> flux_shapes.Scene:
    if rng.random() < 0.5:
        return flux_shapes.sample_scene(rng)
    return flux_shapes.sample_free_scene(rng, rng.choice((1, 2, 3)))


def _crop(image: np.ndarray, size: int, rng: random.Random) -> np.ndarray:
    for _ in range(6):
        top, left = (rng.randrange(side - size + 1) for side in image.shape[:2])
        cut = image[top : top + size, left : left + size]
        if cut.reshape(-1, 3).std(axis=0).max() > 15:
            break
    return cut


def _loss(vae: AutoencoderKL, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    posterior = vae.encode(images).latent_dist
    noise = draws.normal(*posterior.mean.shape).to(images.device)
    decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    error = decoded - images
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return (_edge_weights(images) * (error.abs() + 0.7 * error**2)).mean() + _KL_WEIGHT * divergence


def _edge_weights(images: torch.Tensor) -> torch.Tensor:
    brightest = torch.nn.functional.max_pool2d(images, 5, stride=1, padding=2)
    darkest = -torch.nn.functional.max_pool2d(-images, 5, stride=1, padding=2)
    contrast = (brightest - darkest).amax(dim=1, keepdim=True)
    return 1 + 4 * (contrast > 0.2).float()


@torch.no_grad()
def _measure_latents(vae: AutoencoderKL, settings: Settings) -> None:
    draws = Draws.of(settings, "latent statistics", 0)
    images = draw_images(draws.rng, 128).to(settings.device)
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(16)])
    vae.register_to_config(shift_factor=means.mean().item(), scaling_factor=1 / means.std().item())
