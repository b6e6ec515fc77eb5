"""`AutoencoderKLFlux` gives the reference's latents and pictures, whole and in tiles."""

import pytest
import torch
from torch import nn

from benchmarks.support.reference import reference_vae_decoder, reference_vae_encoder
from diffusers_flux_ext.models.autoencoder_kl_flux import AutoencoderKLFlux
from diffusers_flux_ext.testing import tiny_vae


TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLFlux:
    stock = tiny_vae(seed=7)
    ours = AutoencoderKLFlux(**stock.config)
    ours.load_state_dict(stock.state_dict())
    return ours.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(vae: AutoencoderKLFlux) -> nn.Module:
    return reference_vae_encoder(vae)


@pytest.fixture(scope="module")
def decoder(vae: AutoencoderKLFlux) -> nn.Module:
    return reference_vae_decoder(vae)


def encode(vae: AutoencoderKLFlux, x: torch.Tensor) -> torch.Tensor:
    return (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


def decode(vae: AutoencoderKLFlux, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (67, 61)])
def test_whole_pictures(vae: AutoencoderKLFlux, encoder: nn.Module, decoder: nn.Module, size: tuple[int, int]) -> None:
    vae.disable_tiling()
    x = torch.rand(2, 3, *size) * 2 - 1
    latents = encode(vae, x)
    torch.testing.assert_close(latents, encoder(x), **TOLERANCE)
    torch.testing.assert_close(decode(vae, latents), decoder(latents), **TOLERANCE)


# (height, width, tile, stride) in latent cells, where the reference's tiles reach the borders.
GRIDS = [(24, 32, 16, 8), (16, 40, 16, 12), (28, 12, 12, 4), (20, 30, 10, 10)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiled_pictures(
    vae: AutoencoderKLFlux, encoder: nn.Module, decoder: nn.Module, grid: tuple[int, int, int, int]
) -> None:
    height, width, tile, stride = grid
    vae.enable_tiling(tile * 8, stride * 8, ramp_image_borders=True)
    x = torch.rand(1, 3, height * 8, width * 8) * 2 - 1
    expected = encoder(x, tiled=True, tile_size=tile * 8, tile_stride=stride * 8)
    torch.testing.assert_close(encode(vae, x), expected, **TOLERANCE)
    latents = torch.randn(1, 16, height, width)
    expected = decoder(latents, tiled=True, tile_size=tile, tile_stride=stride)
    torch.testing.assert_close(decode(vae, latents), expected, **TOLERANCE)


def test_without_outer_ramps_only_the_picture_border_differs(vae: AutoencoderKLFlux, decoder: nn.Module) -> None:
    latents = torch.randn(1, 16, 24, 32)
    vae.enable_tiling(128, 64)
    difference = (decode(vae, latents) - decoder(latents, tiled=True, tile_size=16, tile_stride=8)).abs()
    assert difference[..., 32:-32, 32:-32].max() < 1e-4
    assert difference.max() > 1e-3


def test_defined_where_the_reference_is_not(vae: AutoencoderKLFlux, decoder: nn.Module) -> None:
    latents = torch.randn(1, 16, 21, 27)
    assert decoder(latents, tiled=True, tile_size=16, tile_stride=8).isnan().any()
    vae.enable_tiling(128, 64)
    assert decode(vae, latents).isfinite().all()
