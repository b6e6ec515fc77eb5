"""Timestep LoRA against the reference's: the velocity at several timesteps, loops, true CFG, strengths."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.support.parity.loop import TOLERANCE, our_images, reference_images
from benchmarks.support.reference import load_reference_timestep_lora, reference_pair
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler, load_timestep_lora
from diffusers_flux_ext.testing import quiet
from tests.models.test_transformer_parity import inputs, our_velocity


GUIDED = ({"negative_prompt": "ugly", "cfg_scale": 2.0}, {"negative_prompt": "ugly", "true_cfg_scale": 2.0})


@pytest.fixture(scope="module", params=[{}, {"alpha": 0.7}], ids=["published", "weaker"])
def pair(request, tmp_path_factory):
    both, path = reference_pair(seed=3), tmp_path_factory.mktemp("lora") / "adapter_model.safetensors"
    save_file(tiny_timestep_lora(4), path)
    load_reference_timestep_lora(both.reference, path, **request.param)
    ours = quiet(FluxConditionedPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}))
    plain = our_images(ours)
    load_timestep_lora(ours, path, **({"strength": request.param["alpha"]} if request.param else {}))
    return both.reference, ours, plain


@pytest.mark.parametrize("timestep", [1000.0, 617.25])
def test_the_velocity(pair, timestep):
    reference, ours, _ = pair
    values = {**inputs(64), "timestep": torch.tensor([timestep])}
    with torch.no_grad():
        expected = reference.model_fn(dit=reference.dit, **values)
    torch.testing.assert_close(our_velocity(ours.transformer, values), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("theirs, own", [({}, {}), GUIDED], ids=["plain", "guided"])
def test_the_loop(pair, theirs, own):
    reference, ours, plain = pair
    expected = reference_images(reference, theirs).clamp(-1, 1)
    images = our_images(ours, **own)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    assert (images - plain).abs().max() > 0.01
