"""TeaCache skips the steps that the reference skips, and draws its picture."""

import pytest
import torch

from benchmarks.support.reference import controlnet_input, reference_multi_controlnet, reference_pair
from benchmarks.support.reference.pipeline import flux_image
from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from diffusers_flux_ext import (
    ControlNetImage,
    FluxConditionedPipeline,
    FluxFlowMatchScheduler,
    TeaCacheConfig,
    apply_tea_cache,
    remove_tea_cache,
)
from diffusers_flux_ext.caches.tea_cache_step import RunningForward
from diffusers_flux_ext.canvas import pack_latents


STEPS, LENGTH, SIZE = 8, 24, {"height": 48, "width": 64}


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3)
    ours = FluxConditionedPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()})
    ours.set_progress_bar_config(disable=True)
    return both.reference, ours


def spy(monkeypatch, owner, name):
    """The list that results of a method are written to."""
    results, method = [], getattr(owner, name)

    def keep(*args, **kwargs):
        results.append(method(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(owner, name, keep)
    return results


@pytest.mark.parametrize("threshold, skipped", [(0.3, 0), (0.8, 2), (3.0, 4), (1e9, 6)])
def test_the_same_steps_and_the_same_picture(monkeypatch, pair, threshold, skipped):
    reference, ours = pair
    decisions = spy(monkeypatch, flux_image.TeaCache, "check"), spy(monkeypatch, RunningForward, "_compare")
    decoded = spy(monkeypatch, reference.vae_decoder, "forward")
    reference(
        "a cat on the table", seed=0, num_inference_steps=STEPS, t5_sequence_length=LENGTH, progress_bar_cmd=list,
        tea_cache_l1_thresh=threshold, **SIZE,
    )  # fmt: skip
    noise = torch.randn(1, 16, 6, 8, generator=torch.Generator("cpu").manual_seed(0))
    apply_tea_cache(ours.transformer, TeaCacheConfig(threshold))
    try:
        images = ours(
            "a cat on the table", num_inference_steps=STEPS, max_sequence_length=LENGTH, output_type="pt",
            latents=pack_latents(noise), **SIZE,
        ).images  # fmt: skip
    finally:
        remove_tea_cache(ours.transformer)
    assert decisions[0] == decisions[1]
    assert sum(decisions[1]) == skipped
    torch.testing.assert_close(images * 2 - 1, decoded[-1].clamp(-1, 1), atol=1e-3, rtol=0)


def test_where_a_window_opens_or_closes_ours_computes(monkeypatch, pair):
    """The reference goes on skipping there, without residuals that have come or with those that have gone."""
    reference, ours = pair
    net, image = tiny_controlnet(5), PICTURE.resize((64, 48))
    monkeypatch.setattr(reference, "controlnet", reference_multi_controlnet([net], ours.transformer))
    decisions = spy(monkeypatch, flux_image.TeaCache, "check"), spy(monkeypatch, RunningForward, "_compare")
    # Steps 2 to 4: the reference's progress falls from 1 at the first step to 0 at the last.
    window = controlnet_input(image=image, scale=0.7, start=5 / 7 + 0.01, end=3 / 7 - 0.01)
    reference(
        "a cat on the table", seed=0, num_inference_steps=STEPS, t5_sequence_length=LENGTH, progress_bar_cmd=list,
        tea_cache_l1_thresh=1e9, controlnet_inputs=[window], **SIZE,
    )  # fmt: skip
    apply_tea_cache(ours.transformer, TeaCacheConfig(1e9))
    try:
        ours(
            "a cat on the table", num_inference_steps=STEPS, max_sequence_length=LENGTH, output_type="latent",
            conditions=[ControlNetImage(net, image, 0.7, start=2 / STEPS, end=5 / STEPS)], **SIZE,
        )  # fmt: skip
    finally:
        remove_tea_cache(ours.transformer)
    assert decisions[0] == [False, True, True, True, True, True, True, False]
    assert decisions[1] == [False, True, False, True, True, False, True, False]
