"""`FluxFlowMatchScheduler` is the reference's FLUX.1 scheduler, value for value."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from benchmarks.support.reference import ReferencePair, import_reference, reference_pair
from diffusers_flux_ext.schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler


flow_match = import_reference("diffsynth.diffusion.flow_match")

STRENGTHS = [0.1, 0.35, 0.5, 0.8, 1.0]
SHIFTS = [None, 1.0, 3.0, 3.1, 6.5]


def both(steps: int, strength: float = 1.0, shift: float | None = None) -> tuple[Any, FluxFlowMatchScheduler]:
    reference = flow_match.FlowMatchScheduler("FLUX.1")
    reference.set_timesteps(steps, denoising_strength=strength, shift=shift)
    ours = FluxFlowMatchScheduler()
    ours.set_timesteps(steps, denoising_strength=strength, shift=shift)
    return reference, ours


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_grid_is_equal_for_every_step_count(strength: float, shift: float | None) -> None:
    for steps in range(1, 51):
        reference, ours = both(steps, strength, shift)
        assert torch.equal(ours.timesteps, reference.timesteps)
        assert torch.equal(ours.sigmas[:-1], reference.sigmas)
        assert ours.sigmas[-1] == 0


@pytest.mark.parametrize("strength", STRENGTHS)
def test_denoising_loop_is_equal(strength: float) -> None:
    reference, ours = both(6, strength)
    sample = other = torch.randn(1, 16, 8, 8)
    for timestep in reference.timesteps:
        velocity = torch.randn_like(sample)
        sample = reference.step(velocity, timestep, sample)
        other = ours.step(velocity, timestep, other).prev_sample
        assert torch.equal(sample, other)


@pytest.mark.parametrize("timestep", [0.0, 3.7, 250.0, 616.0, 999.0, 1000.0])
def test_added_noise_is_equal(timestep: float) -> None:
    reference, ours = both(30, 0.9)
    sample, noise = torch.randn(2, 1, 16, 8, 8).unbind()
    expected = reference.add_noise(sample, noise, torch.tensor(timestep))
    assert torch.equal(ours.add_noise(sample, noise, torch.tensor(timestep)), expected)


@pytest.mark.parametrize("steps", [2, 30, 1000])
def test_training_weights_are_equal(steps: int) -> None:
    reference = flow_match.FlowMatchScheduler("FLUX.1")
    reference.set_timesteps(steps, training=True)
    ours = FluxFlowMatchScheduler()
    if steps != 1000:
        ours.set_timesteps(steps)
    timesteps = torch.cat([reference.timesteps, torch.rand(50) * 1000])
    expected = torch.stack([reference.training_weight(timestep) for timestep in timesteps])
    torch.testing.assert_close(ours.training_weights(timesteps), expected, rtol=1e-6, atol=1e-7)


def test_fresh_scheduler_has_the_training_grid() -> None:
    reference, _ = both(1000)
    ours = FluxFlowMatchScheduler()
    assert torch.equal(ours.timesteps, reference.timesteps)
    assert torch.equal(ours.sigmas, reference.sigmas)


def test_training_target_is_equal() -> None:
    reference, ours = both(30)
    sample, noise = torch.randn(2, 1, 16, 8, 8).unbind()
    assert torch.equal(ours.training_target(sample, noise), reference.training_target(sample, noise, None))


@pytest.fixture(scope="module")
def pair() -> ReferencePair:
    return reference_pair(seed=4)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def run_stock(pipe: FluxPipeline, **arguments: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red cat", max_sequence_length=32, generator=torch.manual_seed(5), output_type="np", **arguments)
    # The reference truncates where diffusers rounds.
    return (image.images[0] * 255).astype(int)


def run_reference(pair: ReferencePair, **arguments: Any) -> np.ndarray:
    settings = {"height": 64, "width": 48, "seed": 5, "t5_sequence_length": 32, "progress_bar_cmd": list}
    return pixels(pair.reference("a red cat", **settings, **arguments))


def test_stock_pipeline_draws_the_reference_picture(pair: ReferencePair) -> None:
    scheduler = FluxFlowMatchScheduler()
    pipe = FluxPipeline(**{**pair.components, "scheduler": scheduler})
    ours = run_stock(pipe, height=64, width=48, num_inference_steps=5, sigmas=scheduler.base_sigmas(5))
    assert np.abs(ours - run_reference(pair, num_inference_steps=5)).max() <= 1


@pytest.mark.parametrize("strength", [0.3, 0.8])
def test_stock_image_to_image_pipeline_draws_the_reference_picture(pair: ReferencePair, strength: float) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    reference, scheduler = pair.reference, FluxFlowMatchScheduler()
    with torch.no_grad():
        latents = reference.vae_encoder(reference.preprocess_image(picture))
    pipe = FluxImg2ImgPipeline(**{**pair.components, "scheduler": scheduler})
    sigmas = scheduler.base_sigmas(5, strength)
    ours = run_stock(
        pipe,
        image=latents,
        height=64,
        width=48,
        strength=1.0,
        guidance_scale=3.5,
        num_inference_steps=5,
        sigmas=sigmas,
    )
    expected = run_reference(pair, input_image=picture, denoising_strength=strength, num_inference_steps=5)
    assert np.abs(ours - expected).max() <= 1
