"""`FluxFlowMatchScheduler` is the reference's FLUX.1 scheduler, value for value."""

from typing import Any

import pytest
import torch

from diffusers_flux_ext.schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
from tests.parity.reference import import_reference


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
