"""What else a user has set up keeps working beside attached conditions, and other pipelines are not touched."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxImg2ImgPipeline, FluxPipeline

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from benchmarks.support.tiny.ip_adapter import tiny_ip_adapter
from benchmarks.support.tiny.lora_encoder import tiny_lora
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import (
    ControlNetImage,
    FluxConditionedPipeline,
    IPAdapterImages,
    TeaCacheConfig,
    apply_tea_cache,
    attach_conditions,
    attached_conditions,
    detach_conditions,
    disable_lora_fusion,
    enable_lora_fusion,
    load_lora,
    load_timestep_lora,
)
from diffusers_flux_ext.testing import call_kwargs, different, quiet, tiny_pipeline, tiny_transformer
from tests.conformance.test_pipeline_features import add_ip_adapters
from tests.fixtures.offload import watch_card
from tests.fixtures.stock_pipelines import draw, stock_call, stock_pipeline


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
WAIT = 60


@pytest.fixture
def stock():
    return tiny_pipeline(FluxPipeline)


def ours(stock, *names, **arguments):
    pipe = quiet(FluxConditionedPipeline.from_pipe(stock))
    return pipe(**call_kwargs(conditions=[CASES[name].build() for name in names], **arguments)).images


def attached(stock, *names, **arguments):
    with attach_conditions(stock, [CASES[name].build() for name in names]):
        return stock(**call_kwargs(**arguments)).images


def same(stock, *names, **arguments):
    return torch.equal(attached(stock, *names, **arguments), ours(stock, *names, **arguments))


class TestCallbacks:
    def test_they_see_and_change_the_latents(self, stock):
        seen = []

        def halve(pipe, index, timestep, tensors):
            seen.append(tensors["latents"].clone())
            return {"latents": tensors["latents"] * 0.5, "prompt_embeds": tensors["prompt_embeds"] * 0.9}

        call = {"callback_on_step_end": halve, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
        assert same(stock, "entities", "inpaint", **call)
        assert len(seen) == 6
        assert torch.equal(seen[0], seen[3])

    def test_interrupting(self, stock):
        def stop(pipe, index, timestep, tensors):
            pipe._interrupt = True
            return {}

        assert same(stock, "entities", "inpaint", callback_on_step_end=stop)

    @pytest.mark.parametrize("name", ["FluxPipeline", "FluxControlNetInpaintPipeline", "FluxKontextPipeline"])
    def test_an_error_leaves_nothing(self, name):
        pipe = stock_pipeline(name)
        before = draw(pipe)

        def fail(pipe, index, timestep, tensors):
            raise KeyError("mine")

        names = ["entities", "controlnet"] + ["inpaint"] * (name == "FluxPipeline")
        with attach_conditions(pipe, [CASES[each].build() for each in names]):
            with pytest.raises(KeyError, match="mine"):
                draw(pipe, callback_on_step_end=fail)
            other = type(pipe)(**pipe.components)
            assert torch.equal(draw(quiet(other)), before)
            again = draw(pipe)
        assert different(again, before)
        assert torch.equal(draw(pipe), before)

    @pytest.mark.parametrize("part", ["forward", "decode"])
    def test_an_error_in_a_model_leaves_nothing(self, stock, part, monkeypatch):
        before = stock(**call_kwargs()).images

        def fail(*args, **kwargs):
            raise MemoryError("full")

        with attach_conditions(stock, [CASES["entities"].build(), CASES["inpaint"].build()]):
            expected = stock(**call_kwargs()).images
            with monkeypatch.context() as patch:
                patch.setattr(stock.vae if part == "decode" else stock.transformer.norm_out, part, fail)
                with pytest.raises(MemoryError, match="full"):
                    stock(**call_kwargs())
            assert torch.equal(stock(**call_kwargs()).images, expected)
        assert torch.equal(stock(**call_kwargs()).images, before)
        assert torch.equal(stock.image_processor.postprocess(before, output_type="pt"), before / 2 + 0.5)


class TestModels:
    def test_loras(self, stock):
        load_lora(stock, {name: 0.3 * weight for name, weight in tiny_lora().items()}, "mine")
        with_lora = attached(stock, "entities")
        assert torch.equal(with_lora, ours(stock, "entities"))
        assert same(stock, "entities", joint_attention_kwargs={"scale": 0.3})
        stock.unload_lora_weights()
        assert different(attached(stock, "entities"), with_lora)

    @pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
    def test_group_offloading(self, stock, kind):
        expected = attached(stock, "entities", "controlnet", "inpaint", **GUIDED)
        stock.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
        assert torch.equal(attached(stock, "entities", "controlnet", "inpaint", **GUIDED), expected)

    def test_model_offloading_brings_one_model_at_a_time(self, stock, monkeypatch):
        expected = attached(stock, "entities", "inpaint")
        with attach_conditions(stock, [CASES["entities"].build(), CASES["inpaint"].build()]):
            calls = watch_card(monkeypatch, stock)
            assert torch.equal(stock(**call_kwargs()).images, expected)
        alone = [resident for name, resident in calls if name == "transformer"]
        # The VAE, which encoded the image to inpaint, has left before the loop.
        assert alone == [{"transformer"}] * 3

    @pytest.mark.slow
    @pytest.mark.parametrize("fullgraph", [False, True])
    @pytest.mark.parametrize("how", ["blocks", "module", "in place"])
    def test_compiled(self, how, fullgraph):
        # As few blocks as there are kinds of them: the last single block is one of its own.
        stock = tiny_pipeline(FluxPipeline, transformer=tiny_transformer(0, num_layers=1, num_single_layers=2))
        prompt = CASES["ip-adapter"].inputs
        conditions = [
            CASES["entities"].build(),
            IPAdapterImages(**{**prompt, "adapter": tiny_ip_adapter(1, num_blocks=3)}),
        ]
        short = {"num_inference_steps": 2}

        def draw_with_conditions():
            with attach_conditions(stock, conditions):
                return stock(**call_kwargs(**short, **GUIDED)).images

        expected = draw_with_conditions()
        options = {"backend": "eager", "fullgraph": fullgraph}
        if how == "blocks":
            stock.transformer.compile_repeated_blocks(**options)
        elif how == "module":
            stock.transformer = torch.compile(stock.transformer, **options)
        else:
            stock.transformer.compile(**options)
        before = stock(**call_kwargs(**short)).images
        torch.testing.assert_close(draw_with_conditions(), expected)
        assert torch.equal(stock(**call_kwargs(**short)).images, before)

    def test_other_hooks_of_the_transformer_see_what_it_runs(self, stock):
        lengths = []
        handle = stock.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
        )
        attached(stock, "text")
        handle.remove()
        assert lengths == [16 + 4] * 3

    @pytest.mark.parametrize("pipeline_class", [FluxPipeline, FluxImg2ImgPipeline])
    def test_caches(self, pipeline_class):
        pipe, call = tiny_pipeline(pipeline_class), {"num_inference_steps": 6, **GUIDED}
        if pipeline_class is FluxImg2ImgPipeline:
            call |= {"image": torch.full((1, 3, 32, 48), 0.5), "strength": 1.0, "guidance_scale": 3.5}
        plain = attached(pipe, "entities", **call)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=2.0))
        assert same(pipe, "entities", **call)
        pipe.transformer.disable_cache()
        apply_tea_cache(pipe.transformer, TeaCacheConfig(3.0, 6))
        assert same(pipe, "entities", **call)
        assert different(attached(pipe, "entities", **call), plain)

    def test_lora_fusion_and_timestep_loras(self, stock):
        for seed in range(2):
            load_lora(stock, small_lora(seed), f"lora_{seed}")
        enable_lora_fusion(stock, tiny_fusion())
        fused = attached(stock, "entities")
        assert torch.equal(fused, ours(stock, "entities"))
        disable_lora_fusion(stock)
        stock.unload_lora_weights()
        load_timestep_lora(stock, tiny_timestep_lora())
        timed = attached(stock, "entities")
        assert torch.equal(timed, ours(stock, "entities"))
        assert different(timed, fused)

    def test_an_ip_adapter_of_diffusers(self, stock):
        embeds = add_ip_adapters(stock)
        assert same(stock, "entities", **embeds, **GUIDED)
        with pytest.raises(ValueError, match="Image prompts need .*unload_ip_adapter"):
            attached(stock, "ip-adapter", **embeds)


class TestControlNets:
    def test_those_of_the_pipeline_stay_in_force(self, monkeypatch):
        pipe, control = stock_pipeline("FluxControlNetPipeline"), PICTURE.resize((48, 32))
        call = {"control_image": control, "controlnet_conditioning_scale": 0.7, **GUIDED}
        noise, prepare = [], pipe.prepare_latents
        # The pipeline draws the noise after it has sampled the latents of its control image.
        monkeypatch.setattr(pipe, "prepare_latents", lambda *args: noise.append(prepare(*args)) or noise[-1])
        with attach_conditions(pipe, [CASES["entities"].build(), CASES["controlnet"].build()]):
            images = draw(pipe, **call)
        own = ControlNetImage(pipe.controlnet, control, scale=0.7, generator=call_kwargs()["generator"])
        conditions = [own, CASES["entities"].build(), CASES["controlnet"].build()]
        conditioned = quiet(FluxConditionedPipeline.from_pipe(pipe))
        expected = conditioned(**call_kwargs(conditions=conditions, latents=noise[0][0], **GUIDED)).images
        assert torch.equal(images, expected)

    @pytest.mark.parametrize("kind", ["plain", "xlabs"])
    def test_alone_they_are_what_they_were(self, kind):
        pipe = stock_pipeline("FluxControlNetPipeline", controlnet=tiny_controlnet(4, kind))
        expected = draw(pipe, **GUIDED)
        with attach_conditions(pipe, []):
            assert torch.equal(draw(pipe, **GUIDED), expected)


class TestOtherPipelines:
    def test_on_the_same_transformer_between_calls(self, stock):
        other = quiet(FluxPipeline(**stock.components))
        before = other(**call_kwargs()).images
        with attach_conditions(stock, [CASES["entities"].build()]):
            stock(**call_kwargs())
            assert torch.equal(other(**call_kwargs()).images, before)
            assert attached_conditions(other) == []

    @pytest.mark.parametrize("kind", ["stock", "attached", "ours"])
    @pytest.mark.parametrize("in_thread", [False, True])
    def test_on_the_same_transformer_during_a_step(self, stock, kind, in_thread):
        parts = {**stock.components, "scheduler": copy.deepcopy(stock.scheduler)}
        other = quiet((FluxConditionedPipeline if kind == "ours" else FluxPipeline)(**parts))
        call = call_kwargs(**({"conditions": [CASES["text"].build()]} if kind == "ours" else {}), prompt="a red dog")
        if kind == "attached":
            attach_conditions(other, [CASES["references"].build()])

        def run():
            return other(**{**call, "generator": call_kwargs()["generator"]}).images

        expected, alone, results = attached(stock, "entities", "inpaint"), run(), []

        def beside(pipe, index, timestep, tensors):
            if in_thread:
                thread = threading.Thread(target=lambda: results.append(run()))
                thread.start()
                thread.join(WAIT)
            else:
                results.append(run())
            return {}

        assert torch.equal(attached(stock, "entities", "inpaint", callback_on_step_end=beside), expected)
        assert len(results) == 3
        assert all(torch.equal(each, alone) for each in results)

    @pytest.mark.parametrize("kind", [FluxPipeline, FluxConditionedPipeline])
    def test_a_shared_scheduler_is_refused(self, stock, kind):
        other = quiet(kind(**stock.components))

        def beside(pipe, index, timestep, tensors):
            other(**call_kwargs())
            return {}

        with pytest.raises(RuntimeError, match=r"scheduler of its own: `pipe.scheduler = FlowMatchEulerDiscrete"):
            attached(stock, "entities", callback_on_step_end=beside)
        assert "step" not in vars(stock.scheduler)

    def test_the_same_pipeline_in_its_own_callback_is_refused(self, stock):
        def beside(pipe, index, timestep, tensors):
            pipe(**call_kwargs())

        def take_off(pipe, index, timestep, tensors):
            detach_conditions(pipe)

        with pytest.raises(RuntimeError, match="FluxPipeline is called while it draws"):
            attached(stock, "entities", callback_on_step_end=beside)
        with pytest.raises(RuntimeError, match=r"AttachedConditions\(EntityRegions\).*cannot be detached while"):
            attached(stock, "entities", callback_on_step_end=take_off)


class TestCopies:
    def test_a_copy_is_refused_rather_than_drawn_without_conditions(self, stock):
        stock(**call_kwargs())
        with attach_conditions(stock, [CASES["entities"].build()]):
            with pytest.raises(RuntimeError, match=r"was copied while .* AttachedConditions\(EntityRegions\)"):
                copy.copy(stock)(**call_kwargs())
            with pytest.raises(RuntimeError, match=r"AttachedConditions\(EntityRegions\) cannot be copied"):
                copy.deepcopy(stock)
            images = stock(**call_kwargs()).images
        assert torch.equal(images, ours(stock, "entities"))

    def test_a_pipeline_made_of_it_has_none(self, stock):
        before = stock(**call_kwargs()).images
        with attach_conditions(stock, [CASES["entities"].build()]):
            made = quiet(FluxPipeline.from_pipe(stock))
            assert attached_conditions(made) == []
            assert torch.equal(made(**call_kwargs()).images, before)


class TestMethodsOfTheUser:
    def test_those_replaced_before_run_and_come_back(self, stock):
        calls, encode = [], stock.encode_prompt

        def counted(*args, **kwargs):
            calls.append(1)
            return encode(*args, **kwargs)

        stock.encode_prompt = counted
        attached(stock, "entities")
        assert stock.encode_prompt is counted
        assert len(calls) == 1

    def test_those_replaced_meanwhile_stay(self, stock):
        before, handle = stock(**call_kwargs()).images, attach_conditions(stock, [CASES["entities"].build()])
        encode = stock.encode_prompt

        def mine(*args, **kwargs):
            return encode(*args, **kwargs)

        stock.encode_prompt = mine
        handle.detach()
        assert stock.encode_prompt is mine
        assert torch.equal(stock(**call_kwargs()).images, before)
        handle.detach()

    def test_encoding_prompts_beforehand_is_not_a_branch(self, stock):
        with attach_conditions(stock, [CASES["entities"].build()]):
            embeds = stock.encode_prompt("a cat", max_sequence_length=16)[:2]
            given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), embeds))
            images = stock(**call_kwargs(**given, prompt=None)).images
            assert list(stock.progress_bar(range(3))) == [0, 1, 2]
        assert torch.equal(images, ours(stock, "entities", **given, prompt=None))

    def test_a_deleted_pipeline_is_freed_at_once(self):
        pipe = tiny_pipeline(FluxPipeline)
        attach_conditions(pipe, [CASES["entities"].build()])
        pipe(**call_kwargs())
        gc.collect()
        gc.disable()
        try:
            watch = weakref.ref(pipe)
            del pipe
            assert watch() is None
        finally:
            gc.enable()


def test_the_arguments_of_the_call_are_checked_as_before(stock):
    with attach_conditions(stock, [CASES["entities"].build()]):
        with pytest.raises(TypeError, match="conditions"):
            stock(**stock_call("FluxPipeline", conditions=[]))
