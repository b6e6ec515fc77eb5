"""Caches of other libraries are recognised, and refused where they would draw something else."""

import functools
import importlib.util
import logging
import unittest.mock

import pytest
import torch
from diffusers import FluxTransformer2DModel, TaylorSeerCacheConfig

from benchmarks.support.conditions import CASES
from diffusers_flux_ext import FluxConditionedPipeline, TeaCacheConfig, apply_tea_cache
from diffusers_flux_ext.caches.foreign import foreign_cache
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
RESIDUALS = ["controlnet", "identity"]


@pytest.fixture
def pipe():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))


def draw(pipe, *names, **overrides):
    conditions = [CASES[name].build() for name in names]
    return pipe(**call_kwargs(num_inference_steps=4, conditions=conditions, **overrides)).images


class JoinedBlocks(torch.nn.Module):
    """All blocks in one, as cache-dit and ParaAttention have them; this one skips nothing."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = list(blocks)

    def forward(self, hidden_states, encoder_hidden_states, **kwargs):
        for block in self.blocks:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs
            )
        return encoder_hidden_states, hidden_states


def join_blocks(transformer, mark=True):
    """What ParaAttention's `apply_cache_on_transformer` does; xDiT's leaves no mark."""
    joined = torch.nn.ModuleList(
        [JoinedBlocks(*transformer.transformer_blocks, *transformer.single_transformer_blocks)]
    )
    original, none = transformer.forward, torch.nn.ModuleList()

    @functools.wraps(original)
    def new_forward(self, *args, **kwargs):
        patch = unittest.mock.patch.object
        with patch(self, "transformer_blocks", joined), patch(self, "single_transformer_blocks", none):
            return original(*args, **kwargs)

    transformer.forward = new_forward.__get__(transformer)
    if mark:
        transformer._is_cached = True


def patch_forward(transformer):
    """The attributes that TeaCache's published script sets."""
    transformer.enable_teacache, transformer.accumulated_rel_l1_distance = True, 0


class TestBlocksJoined:
    @pytest.mark.parametrize("mark", [True, False])
    @pytest.mark.parametrize("name", RESIDUALS)
    def test_residuals_are_refused(self, pipe, name, mark):
        join_blocks(pipe.transformer, mark)
        with pytest.raises(ValueError, match=r"another library's cache around its blocks.*drops the residuals"):
            draw(pipe, name)

    def test_guidance_is_refused(self, pipe):
        join_blocks(pipe.transformer)
        with pytest.raises(ValueError, match="mixes them.*or call without `negative_prompt`"):
            draw(pipe, **GUIDED)

    def test_the_mark_shows_below_other_hooks(self, pipe):
        join_blocks(pipe.transformer, mark=False)
        pipe.transformer.enable_cache(TaylorSeerCacheConfig())
        pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        assert foreign_cache(pipe.transformer) is not None

    @pytest.mark.parametrize("names", [(), ("entities",), ("ip-adapter",)])
    def test_what_needs_no_residuals_runs_exactly(self, pipe, names):
        """Such caches leave the lists of blocks in another order, by which image prompts were given other blocks."""
        expected = draw(pipe, *names)
        join_blocks(pipe.transformer)
        for _ in range(2):
            assert torch.equal(draw(pipe, *names), expected)


class TestPatchedForward:
    def test_guidance_is_refused_and_residuals_are_not(self, pipe):
        expected = draw(pipe, "controlnet")
        patch_forward(pipe.transformer)
        assert torch.equal(draw(pipe, "controlnet"), expected)
        with pytest.raises(ValueError, match="TeaCache's published patch.*use `apply_tea_cache`"):
            draw(pipe, **GUIDED)
        pipe.transformer.enable_teacache = False
        assert torch.isfinite(draw(pipe, **GUIDED)).all()


@pytest.mark.parametrize("apply", [join_blocks, patch_forward])
def test_two_caches_at_once_are_refused(pipe, apply):
    apply(pipe.transformer)
    with pytest.raises(ValueError, match="already runs with (another library|TeaCache's published)"):
        apply_tea_cache(pipe.transformer, TeaCacheConfig(0.4))
    pipe.transformer.enable_cache(TaylorSeerCacheConfig())
    with pytest.raises(ValueError, match=r"and with \['TaylorSeerCacheConfig'\] at once"):
        draw(pipe)


def test_ordinary_transformers_are_taken_for_themselves(pipe):
    transformer: FluxTransformer2DModel = pipe.transformer
    assert foreign_cache(transformer) is None
    transformer.enable_cache(TaylorSeerCacheConfig())
    transformer.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    assert foreign_cache(transformer) is None
    compiled = tiny_transformer(0)
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    assert foreign_cache(compiled) is None


@pytest.mark.skipif(
    importlib.util.find_spec("cache_dit") is None,
    reason="cache-dit is not installed; `TestBlocksJoined` has blocks joined in the same way",
)
class TestCacheDiT:
    @pytest.fixture
    def cached(self, pipe):
        import cache_dit

        logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)

        def enable(**settings):
            config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, **settings)
            cache_dit.enable_cache(pipe, cache_config=config)
            return pipe

        yield enable
        # It patches the class, too.
        cache_dit.disable_cache(pipe)

    @pytest.mark.parametrize("name", RESIDUALS)
    def test_residuals_are_refused(self, cached, name):
        with pytest.raises(ValueError, match=r"runs with cache-dit.*drops the residuals.*cache_dit.disable_cache"):
            draw(cached(residual_diff_threshold=0.0), name)

    @pytest.mark.parametrize("separate", [None, False])
    def test_guidance_needs_separate_branches(self, cached, separate):
        pipe = cached(residual_diff_threshold=0.5, enable_separate_cfg=separate)
        with pytest.raises(ValueError, match="`enable_separate_cfg=True`, or call without"):
            draw(pipe, "lora embedding", **GUIDED)

    def test_separate_branches_of_different_lengths(self, cached):
        pipe = cached(residual_diff_threshold=0.5, enable_separate_cfg=True)
        assert torch.isfinite(draw(pipe, "lora embedding", **GUIDED)).all()

    @pytest.mark.parametrize("names", [(), ("entities",), ("ip-adapter",)])
    def test_what_needs_no_residuals_runs_exactly_at_threshold_zero(self, pipe, cached, names):
        expected = draw(pipe, *names)
        cached(residual_diff_threshold=0.0)
        for _ in range(2):
            torch.testing.assert_close(draw(pipe, *names), expected, atol=1e-5, rtol=0)

    def test_a_transformer_without_a_pipeline_starts_anew_at_each_call(self, pipe):
        import cache_dit

        config = cache_dit.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, residual_diff_threshold=100.0
        )
        cache_dit.enable_cache(pipe.transformer, cache_config=config)
        try:
            expected = draw(pipe)
            stop = lambda running, *args: setattr(running, "_interrupt", True) or {}  # noqa: E731
            draw(pipe, prompt="a red dog", callback_on_step_end=stop)
            assert torch.equal(draw(pipe), expected)
        finally:
            cache_dit.disable_cache(pipe.transformer)
