"""The package's scheduler, VAE and transformer as components of stock pipelines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FluxImg2ImgPipeline, FluxPipeline

import diffusers_flux_ext
from diffusers_flux_ext import AutoencoderKLFlux, FluxExtTransformer2DModel, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import tiny_components


def our_components(**scheduler: Any) -> dict[str, Any]:
    stock = tiny_components(seed=2)
    vae = AutoencoderKLFlux(**stock["vae"].config)
    vae.load_state_dict(stock["vae"].state_dict())
    transformer = FluxExtTransformer2DModel.from_state_dict(
        stock["transformer"].state_dict(), axes_dims_rope=stock["transformer"].config.axes_dims_rope
    )
    return {**stock, "vae": vae.eval(), "transformer": transformer, "scheduler": FluxFlowMatchScheduler(**scheduler)}


def draw(pipe: DiffusionPipeline, **arguments: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    settings = {"height": 48, "width": 64, "num_inference_steps": 3, "max_sequence_length": 16, "output_type": "pt"}
    return pipe("a red cat", generator=torch.manual_seed(0), **{**settings, **arguments}).images


def test_stock_pipeline_draws_the_same_with_our_components() -> None:
    stock = tiny_components(seed=2)
    pictures = [draw(FluxPipeline(**c)) for c in (stock, our_components(base_grid="diffusers", shift=1.0))]
    assert torch.equal(*pictures)


@pytest.mark.parametrize("kind", [FluxPipeline, DiffusionPipeline])
def test_saved_pipelines_come_back_with_our_classes(tmp_path: Path, kind: type[DiffusionPipeline]) -> None:
    pipe = FluxPipeline(**our_components())
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert type(loaded) is FluxPipeline
    for name in ("vae", "transformer", "scheduler"):
        assert type(getattr(loaded, name)) is type(getattr(pipe, name))
        assert type(getattr(loaded, name)).__module__.startswith(diffusers_flux_ext.__name__)
    assert torch.equal(draw(loaded), expected)


def test_tiling_is_switched_by_the_pipeline() -> None:
    pipe = FluxPipeline(**our_components())
    whole = draw(pipe)
    pipe.vae.enable_tiling(32, 16)
    assert not torch.equal(draw(pipe), whole)
    pipe.vae.disable_tiling()
    assert torch.equal(draw(pipe), whole)


def test_image_to_image_starts_from_the_noise_level_of_the_strength() -> None:
    pipe = FluxImg2ImgPipeline(**our_components())
    picture = torch.rand(1, 3, 48, 64, generator=torch.manual_seed(3))
    distances = []
    for strength in (0.02, 0.5, 1.0):
        sigmas = pipe.scheduler.base_sigmas(3, strength)
        drawn = draw(pipe, image=picture, strength=1.0, sigmas=sigmas)
        distances.append((drawn - draw(pipe, image=picture, strength=1.0, sigmas=[1e-4])).abs().mean().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[2]
