"""TeaCache: what it skips, what it remembers, and what it survives."""

import logging
from contextlib import nullcontext

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxImg2ImgPipeline, FluxPipeline
from diffusers.hooks.group_offloading import ModuleGroup
from peft import LoraConfig

from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
    FluxExtTransformer2DModel,
    ReferenceImages,
    TeaCacheConfig,
    apply_tea_cache,
    remove_tea_cache,
)
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline, tiny_transformer


ALL, STEPS = TeaCacheConfig(1e9, 5), 5
CPU = torch.device("cpu")
CFG = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}


@pytest.fixture
def pipe():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))


@pytest.fixture
def runs(monkeypatch, pipe):
    """Counts the calls of a double and of a single block."""
    counts = {"double": 0, "single": 0}
    for kind, block in (
        ("double", pipe.transformer.transformer_blocks[1]),
        ("single", pipe.transformer.single_transformer_blocks[0]),
    ):
        block.register_forward_pre_hook(lambda module, inputs, kind=kind: counts.__setitem__(kind, counts[kind] + 1))
    return counts


def draw(pipe, **overrides):
    return pipe(**call_kwargs(**{"num_inference_steps": STEPS, **overrides})).images


def inputs(batch=1, text=4, offset=0.0, **residuals):
    image = torch.randn(batch, 6, 64, generator=seeded(1))
    return {
        "hidden_states": image,
        "timestep": torch.full((batch,), 0.5),
        "guidance": torch.full((batch,), 3.5),
        "pooled_projections": torch.randn(batch, 24, generator=seeded(2)),
        "encoder_hidden_states": torch.randn(batch, text, 40, generator=seeded(3)),
        "txt_ids": torch.zeros(text, 3),
        "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0)) + offset,
        "return_dict": False,
        **residuals,
    }


def step(transformer, index, **kwargs):
    with torch.no_grad(), transformer.cache_context("cond", step_index=index, num_inference_steps=STEPS):
        return transformer(**inputs(**kwargs))[0]


class TestSkipping:
    def test_nothing_is_skipped_at_zero(self, pipe, runs):
        expected = draw(pipe, **CFG)
        apply_tea_cache(pipe.transformer, TeaCacheConfig(0))
        assert torch.equal(draw(pipe, **CFG), expected)
        assert runs == {"double": 4 * STEPS, "single": 4 * STEPS}

    def test_removing_restores_the_transformer(self, pipe):
        expected = draw(pipe)
        apply_tea_cache(pipe.transformer, ALL)
        assert not torch.equal(draw(pipe), expected)
        remove_tea_cache(pipe.transformer)
        assert torch.equal(draw(pipe), expected)
        assert type(pipe.transformer.transformer_blocks) is torch.nn.ModuleList
        assert not pipe.transformer.is_cache_enabled
        remove_tea_cache(pipe.transformer)

    @pytest.mark.parametrize("extra", [{}, CFG, {"prompt": ["a", "b"], "num_images_per_prompt": 2}], ids=str)
    def test_the_first_and_the_last_step_run_in_each_branch(self, pipe, runs, extra):
        apply_tea_cache(pipe.transformer, ALL)
        assert torch.isfinite(draw(pipe, **extra)).all()
        branches = 2 if extra is CFG else 1
        assert runs == {"double": 2 * branches, "single": 2 * branches}

    def test_branches_do_not_share(self, pipe):
        """With the same prompt on both sides guidance changes nothing, unless one side reads the other's state."""
        apply_tea_cache(pipe.transformer, ALL)
        plain = draw(pipe)
        torch.testing.assert_close(draw(pipe, negative_prompt="a cat on the table", true_cfg_scale=3.0), plain)
        hook = pipe.transformer._diffusers_hook.hooks["diffusers_flux_ext_tea_cache"]
        found = []

        def look(running, step_index, timestep, tensors):
            found.extend(dict(states) for states in hook.state_manager._states.values() if states)
            running._interrupt = True
            return {}

        draw(pipe, **CFG, callback_on_step_end=look)
        (states,) = found
        assert states.keys() == {"cond", "uncond"}
        assert not torch.equal(states["cond"].residual, states["uncond"].residual)

    def test_a_batch_is_decided_together_and_skips_as_its_samples(self, pipe):
        apply_tea_cache(pipe.transformer, ALL)
        latents = torch.randn(2, 6, 64, generator=seeded(5))
        both = draw(pipe, prompt=["a cat", "a tree"], latents=latents)
        for index, prompt in enumerate(["a cat", "a tree"]):
            alone = draw(pipe, prompt=prompt, latents=latents[index : index + 1])
            torch.testing.assert_close(both[index : index + 1], alone, atol=1e-5, rtol=0)


def stop_at(index, interrupt=False):
    def callback(pipe, step_index, timestep, tensors):
        if step_index == index:
            if not interrupt:
                raise RuntimeError("stop")
            pipe._interrupt = True
        return {}

    return callback


class TestReset:
    @pytest.mark.parametrize("pipeline_class", [FluxConditionedPipeline, FluxPipeline])
    @pytest.mark.parametrize("interrupt", [False, True])
    def test_a_call_that_broke_off_leaves_nothing(self, pipe, pipeline_class, interrupt):
        pipe = tiny_pipeline(pipeline_class, **pipe.components)
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1e9, 4))
        expected = draw(pipe, num_inference_steps=4)
        with nullcontext() if interrupt else pytest.raises(RuntimeError, match="stop"):
            draw(pipe, num_inference_steps=4, callback_on_step_end=stop_at(1, interrupt), prompt="a red dog")
        assert torch.equal(draw(pipe, num_inference_steps=4), expected)

    def test_a_failed_forward_pass_leaves_nothing(self, pipe, monkeypatch):
        expected = draw(pipe)
        apply_tea_cache(pipe.transformer, ALL)
        with monkeypatch.context() as patch:
            patch.setattr(pipe.transformer.proj_out, "forward", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                draw(pipe)
        remove_tea_cache(pipe.transformer)
        for layer in (pipe.transformer.x_embedder, pipe.transformer.time_text_embed):
            assert not layer._forward_hooks
        assert not pipe.transformer.norm_out._forward_pre_hooks
        assert torch.equal(draw(pipe), expected)

    def test_image_to_image_after_a_failed_call_starts_anew(self, pipe):
        apply_tea_cache(pipe.transformer, ALL)
        start = {"image": PICTURE, "strength": 0.6}
        expected = draw(pipe, **start)
        with pytest.raises(RuntimeError, match="stop"):
            draw(pipe, callback_on_step_end=stop_at(0))
        assert torch.equal(draw(pipe, **start), expected)

    def test_fewer_and_more_steps_than_before(self, pipe, runs):
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1e9))
        for steps in (6, 3, 1):
            runs["double"] = 0
            draw(pipe, num_inference_steps=steps)
            assert runs["double"] == min(2, steps)


class TestLayout:
    @pytest.fixture
    def transformer(self):
        transformer = tiny_transformer(0)
        apply_tea_cache(transformer, ALL)
        return transformer

    @pytest.mark.parametrize(
        "change",
        [{"batch": 2}, {"text": 5}, {"offset": 1.0}, {"controlnet_block_samples": [torch.ones(1, 6, 32)]}],
        ids=lambda change: next(iter(change)),
    )
    def test_a_change_is_computed(self, transformer, change):
        step(transformer, 0)
        changed = step(transformer, 1, **change)
        remove_tea_cache(transformer)
        with torch.no_grad():
            assert torch.equal(changed, transformer(**inputs(**change))[0])

    def test_residuals_count_once(self, transformer):
        residuals = {
            "controlnet_block_samples": [torch.randn(1, 6, 32, generator=seeded(4))],
            "controlnet_single_block_samples": [torch.randn(1, 6, 32, generator=seeded(5))],
        }
        first = step(transformer, 0, **residuals)
        transformer.transformer_blocks[1].forward = None
        torch.testing.assert_close(step(transformer, 1, **residuals), first, atol=1e-5, rtol=0)

    def test_conditions_of_every_kind(self, pipe, runs):
        conditions = [
            EntityRegions(["a red dog", "a tree"], [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)]),
            ControlNetImage(tiny_controlnet(5), PICTURE, end=0.5),
            ReferenceImages(PICTURE, preferred_size=False),
        ]
        expected = draw(pipe, conditions=conditions)
        apply_tea_cache(pipe.transformer, TeaCacheConfig(0))
        assert torch.equal(draw(pipe, conditions=conditions), expected)
        remove_tea_cache(pipe.transformer)
        apply_tea_cache(pipe.transformer, ALL)
        runs["double"] = 0
        skipping = draw(pipe, conditions=conditions)
        # The step after the ControlNet's last one is computed, too.
        assert runs["double"] == 3
        assert torch.isfinite(skipping).all()


class TestCompany:
    @pytest.mark.parametrize("cache_first", [True, False])
    @pytest.mark.parametrize("kind", ["block_level", "leaf_level", "disk"])
    def test_group_offloading_in_both_orders(self, pipe, monkeypatch, tmp_path, kind, cache_first):
        apply_tea_cache(pipe.transformer, ALL)
        expected = draw(pipe)
        remove_tea_cache(pipe.transformer)
        onloads = []
        onload = ModuleGroup.onload_
        monkeypatch.setattr(ModuleGroup, "onload_", lambda group: (onloads.append(group), onload(group))[1])
        offload = {"offload_type": "block_level" if kind == "disk" else kind}
        if kind != "leaf_level":
            offload["num_blocks_per_group"] = 1
        if kind == "disk":
            offload["offload_to_disk_path"] = str(tmp_path)
        parts = [
            lambda: apply_tea_cache(pipe.transformer, ALL),
            lambda: pipe.transformer.enable_group_offload(CPU, **offload),
        ]
        for part in parts if cache_first else parts[::-1]:
            part()
        onloads.clear()
        # Weights from a file lie elsewhere in memory, which changes the last bits.
        torch.testing.assert_close(draw(pipe), expected, atol=1e-5, rtol=0)
        if kind == "block_level":
            # Two computed steps of five blocks, five of the rest, and one look at the first block's norm.
            assert len(onloads) == 2 * 5 + STEPS + 1

    def test_a_lora_on_the_embedder_loaded_afterwards(self, pipe):
        def add_lora(transformer):
            transformer.add_adapter(LoraConfig(r=2, target_modules=["x_embedder", "norm1.linear"]))
            for name, weight in transformer.named_parameters():
                if "lora" in name:
                    torch.nn.init.normal_(weight, std=0.3, generator=seeded(len(name)))

        other = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))
        add_lora(other.transformer)
        apply_tea_cache(other.transformer, TeaCacheConfig(0.8))
        apply_tea_cache(pipe.transformer, TeaCacheConfig(0.8))
        pipe.transformer.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)
        plain = draw(pipe)
        add_lora(pipe.transformer)
        actual = draw(pipe)
        assert torch.equal(actual, draw(other))
        assert not torch.equal(actual, plain)

    @pytest.mark.slow
    def test_compiled_blocks_are_not_compiled_again(self, pipe):
        apply_tea_cache(pipe.transformer, ALL)
        expected = draw(pipe)
        remove_tea_cache(pipe.transformer)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        draw(pipe)
        frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        apply_tea_cache(pipe.transformer, ALL)
        assert torch.equal(draw(pipe), expected)
        assert frames == torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

    def test_stock_pipelines(self, pipe):
        stock = tiny_pipeline(FluxPipeline, **pipe.components)
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1e9))
        with pytest.raises(ValueError, match="does not tell how many steps"):
            draw(stock)
        remove_tea_cache(pipe.transformer)
        apply_tea_cache(pipe.transformer, ALL)
        assert torch.equal(draw(stock, **CFG), draw(pipe, **CFG))
        other = tiny_pipeline(FluxImg2ImgPipeline, **pipe.components)
        with pytest.raises(ValueError, match="No cache context is set"):
            other(**call_kwargs(image=PICTURE))
        with pipe.transformer.cache_context("cond"):
            assert torch.isfinite(other(**call_kwargs(image=PICTURE)).images).all()

    def test_saving_and_bfloat16(self, pipe, tmp_path):
        apply_tea_cache(pipe.transformer, ALL)
        pipe.transformer.save_pretrained(tmp_path)
        pipe.transformer = FluxExtTransformer2DModel.from_pretrained(tmp_path)
        expected = draw(pipe)
        pipe.transformer.enable_cache(TeaCacheConfig(0))
        assert torch.equal(draw(pipe), expected)
        pipe.transformer.disable_cache()
        pipe.transformer.enable_cache(ALL)
        pipe.to(torch.bfloat16)
        assert torch.isfinite(draw(pipe).float()).all()
        pipe.transformer.disable_cache()
        assert not pipe.transformer.is_cache_enabled


class TestErrors:
    def test_settings(self):
        with pytest.raises(ValueError, match="`threshold`.*-1"):
            TeaCacheConfig(-1)
        with pytest.raises(ValueError, match="`threshold`.*nan"):
            TeaCacheConfig(float("nan"))
        with pytest.raises(ValueError, match="`num_inference_steps` must be at least 1, got 0"):
            TeaCacheConfig(0.4, 0)

    def test_transformers(self):
        with pytest.raises(TypeError, match="`FluxTransformer2DModel`, got a Linear"):
            apply_tea_cache(torch.nn.Linear(2, 2), ALL)
        with pytest.raises(ValueError, match="this transformer has no double blocks"):
            apply_tea_cache(tiny_transformer(0, num_layers=0), ALL)
        transformer = tiny_transformer(0)
        transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(ValueError, match="already runs with FirstBlockCacheConfig"):
            apply_tea_cache(transformer, ALL)
        transformer.disable_cache()
        apply_tea_cache(transformer, ALL)
        with pytest.raises(ValueError, match="already runs with TeaCacheConfig"):
            apply_tea_cache(transformer, ALL)
        with pytest.raises(ValueError, match="already been enabled"):
            transformer.enable_cache(FirstBlockCacheConfig())


def test_first_block_cache_also_starts_anew_after_a_failed_call(pipe, caplog):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(1e9))
    with caplog.at_level(logging.ERROR):
        expected = draw(pipe)
        with pytest.raises(RuntimeError, match="stop"):
            draw(pipe, prompt="a red dog", callback_on_step_end=stop_at(1))
        assert torch.equal(draw(pipe), expected)
