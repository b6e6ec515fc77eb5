"""Noise levels and weights of the preset equal DiffSynth-Studio's scheduler."""

import pytest
import torch

from benchmarks.support.reference import import_reference
from diffusers_flux_ext.training.losses import levels, quantiles, weighting


flow_match = import_reference("diffsynth.diffusion.flow_match")


@pytest.fixture(scope="module")
def scheduler():
    scheduler = flow_match.FlowMatchScheduler("FLUX.1")
    scheduler.set_timesteps(1000, training=True)
    return scheduler


def test_the_levels_are_the_references_grid(scheduler) -> None:
    drawn = quantiles(levels("reference"), 4096, 1000).flip(0)
    torch.testing.assert_close(drawn, scheduler.sigmas.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(1000 * drawn, scheduler.timesteps.double(), rtol=1e-6, atol=0)


def test_the_bell_is_the_references_weight(scheduler) -> None:
    weights = weighting("bell")(quantiles(levels("reference"), 4096, 1000).flip(0))
    torch.testing.assert_close(weights, scheduler.linear_timesteps_weights.double(), rtol=0, atol=1e-6)
