"""diffusers' caches in the pipelines: exact where they should be, refused where they cannot be."""

import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import apply_first_block_cache

from benchmarks.cache_table import CACHES, GUIDED, compare
from benchmarks.support.conditions import CASES
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


pytestmark = pytest.mark.versions


@pytest.fixture
def pipe():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))


def check(result):
    assert not isinstance(result, str), result
    assert result["idle"] == 0
    assert result["still"] < 1e-5
    assert 10 < result["psnr"] < 100


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_beside_regions_and_references(cache):
    check(compare(("entities", "references"), cache))


@pytest.mark.parametrize("cache", ["TeaCache", "PAB"])
def test_caches_beside_residuals(cache):
    check(compare(("controlnet",), cache))


@pytest.mark.parametrize("cache", ["TeaCache", "PAB", "FasterCache"])
def test_caches_with_guidance(cache):
    check(compare((), cache, **GUIDED))


def test_a_cache_that_was_applied_by_its_function_is_refused_too(pipe):
    apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="FirstBlockCacheConfig, which would count the residuals.*twice"):
        pipe(**call_kwargs(conditions=[CASES["controlnet"].build()]))


@pytest.mark.parametrize("name, change", [("ip-adapter xlabs", "end"), ("ip-adapter xlabs", "start")])
def test_a_cache_starts_anew_where_inputs_come_or_go(pipe, name, change):
    """The second half of a call is what it would be if the cache knew nothing of the first one."""
    arguments = {"num_inference_steps": 6, "conditions": [CASES[name].build(change)], "output_type": "latent"}
    exact = []
    keep = lambda pipe, index, timestep, tensors: exact.append(tensors["latents"]) or {}  # noqa: E731
    pipe(**call_kwargs(**arguments, callback_on_step_end=keep))
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(cache_interval=9, disable_cache_before_step=2, taylor_factors_dtype=torch.float32)
    )
    replaced = lambda pipe, index, timestep, tensors: {"latents": exact[index]}  # noqa: E731
    seen = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda velocity, *args, **kwargs: (seen.append(velocity), step(velocity, *args, **kwargs))[1]
    pipe(**call_kwargs(**arguments, callback_on_step_end=replaced))
    cached = list(seen)
    pipe.transformer.disable_cache()
    seen.clear()
    pipe(**call_kwargs(**arguments, callback_on_step_end=replaced))
    equal = [torch.equal(ours, theirs) for ours, theirs in zip(cached, seen)]
    # Two steps are computed, one predicted; then image prompts end or start, and it begins again.
    assert equal == [True, True, False, True, True, False]


def faster_cache(**settings):
    return FasterCacheConfig(
        spatial_attention_block_identifiers=("transformer_blocks.*attn",),
        current_timestep_callback=lambda: 900,
        **settings,
    )


def test_faster_cache_needs_settings_for_flux(pipe):
    pipe.transformer.enable_cache(faster_cache(is_guidance_distilled=False))
    with pytest.raises(ValueError, match="half of each batch.*is_guidance_distilled=True"):
        pipe(**call_kwargs())
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(
        faster_cache(is_guidance_distilled=True, spatial_attention_timestep_skip_range=(-1, 950))
    )
    with pytest.raises(ValueError, match=r"nothing to reuse at the timestep 900.*\(-1, 950\).*upper end to 900"):
        pipe(**call_kwargs())
    pipe.transformer.disable_cache()
    assert torch.isfinite(pipe(**call_kwargs()).images).all()
