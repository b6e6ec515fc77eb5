"""Calls at once, in threads and from callbacks, over shared modules: each draws what it draws alone."""

import copy
import threading

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FirstBlockCacheConfig, FluxPipeline, UniPCMultistepScheduler

from benchmarks.support.conditions import CASES
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    TeaCacheConfig,
    apply_tea_cache,
    enable_lora_fusion,
    load_lora,
    load_timestep_lora,
    remove_tea_cache,
)
from diffusers_flux_ext._compat import remove_group_offloading
from diffusers_flux_ext._sharing import _GUARD as GUARD
from diffusers_flux_ext._sharing import ForwardLock
from diffusers_flux_ext.attention import processor
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline, tiny_transformer


WAIT = 60
OTHER = {"prompt": "a red dog on a hill", "num_inference_steps": 5, "height": 48}


@pytest.fixture
def pipe():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0))


def draw(pipe, **arguments):
    return pipe(**call_kwargs(output_type="latent", **arguments)).images


class InThread:
    """Runs a function in another thread, and hands over what it returns or raises."""

    def __init__(self, work):
        self.result = self.error = None

        def run():
            try:
                self.result = work()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def get(self):
        self.thread.join(WAIT)
        assert not self.thread.is_alive(), "the other thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


def during(work, step=1):
    """A callback that runs `work` after a step, and the list of what came out."""
    results = []

    def callback(pipe, index, timestep, tensors):
        if index == step:
            results.append(work())
        return {}

    return callback, results


def beside(work):
    """The same in another thread, for which the call waits."""
    return during(lambda: InThread(work).get())


def in_turns(*draws):
    """Calls in threads whose steps take turns, one step at a time; what they return."""
    turn = threading.Barrier(len(draws))

    def callback(pipe, index, timestep, tensors):
        try:
            turn.wait(WAIT)
        except threading.BrokenBarrierError:
            # The others are through.
            pass
        return {}

    def run(work):
        try:
            return work(callback)
        finally:
            turn.abort()

    threads = [InThread(lambda work=work: run(work)) for work in draws]
    return [thread.get() for thread in threads]


def check_both_ways(first, second, others=None):
    """Two calls give the same at once as one after the other: nested, from another thread, and in turns."""
    alone, others = first(), second() if others is None else others
    for arrange in (during, beside):
        callback, results = arrange(second)
        assert torch.equal(first(callback_on_step_end=callback), alone)
        assert torch.equal(results[0], others)
    results = in_turns(
        lambda callback: first(callback_on_step_end=callback), lambda callback: second(callback_on_step_end=callback)
    )
    assert torch.equal(results[0], alone)
    assert torch.equal(results[1], others)


class TestOnePipeline:
    @pytest.mark.parametrize(
        "scheduler", [None, UniPCMultistepScheduler, DPMSolverMultistepScheduler], ids=lambda each: str(each)[-30:]
    )
    def test_called_while_it_runs(self, pipe, scheduler):
        if scheduler is not None:
            pipe.scheduler = scheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
            )
        check_both_ways(
            lambda **more: draw(pipe, **more), lambda **more: draw(pipe, **OTHER, guidance_scale=1.0, **more)
        )

    def test_a_named_pipeline_with_guidance_and_regions(self, pipe):
        pipe = quiet(FluxEliGenPipeline.from_pipe(pipe))
        entities = {"entity_prompts": ["a dog", "a tree"], "entity_masks": [(0, 0, 0.5, 1), (0, 0, 1, 0.5)]}
        guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
        check_both_ways(
            lambda **more: draw(pipe, **entities, **guided, **more), lambda **more: draw(pipe, **OTHER, **more)
        )

    def test_the_callback_gets_the_pipeline_of_its_own_call(self, pipe):
        expected, seen = draw(pipe, **OTHER), []

        def stop(running, index, timestep, tensors):
            seen.append((running.scheduler.timesteps.shape, running.guidance_scale))
            running._interrupt = True
            return {}

        callback, stopped = during(lambda: draw(pipe, callback_on_step_end=stop, guidance_scale=1.5))
        assert torch.equal(draw(pipe, **OTHER, callback_on_step_end=callback), expected)
        assert seen == [((3,), 1.5)]
        assert not torch.equal(stopped[0], draw(pipe, guidance_scale=1.5))
        assert torch.equal(draw(pipe, **OTHER), expected)

    def test_a_failed_call_leaves_nothing(self, pipe):
        expected = draw(pipe)
        callback, _ = beside(lambda: draw(pipe, height=1))
        with pytest.raises(ValueError, match="at least"):
            draw(pipe, callback_on_step_end=callback)
        scheduler = pipe.scheduler
        assert torch.equal(draw(pipe), expected)
        # Alone again, the pipeline runs with its own scheduler.
        assert scheduler.step_index == 3

    def test_a_scheduler_that_cannot_be_copied_is_refused(self, pipe):
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
        callback, _ = during(lambda: draw(pipe))
        with pytest.raises(RuntimeError, match=r"\['step'\] of it were replaced.*from_config"):
            draw(pipe, callback_on_step_end=callback)


class TestSharedModules:
    @pytest.fixture
    def other(self, pipe):
        return quiet(FluxConditionedPipeline.from_pipe(pipe))

    @pytest.fixture
    def stock(self, pipe):
        # diffusers sets the padding of tokenizers without a lock.
        own = {name: copy.deepcopy(pipe.components[name]) for name in ("tokenizer", "tokenizer_2")}
        own["scheduler"] = type(pipe.scheduler).from_config(pipe.scheduler.config)
        return tiny_pipeline(FluxPipeline, **{**pipe.components, **own})

    @pytest.mark.parametrize("name", ["entities", "ip-adapter", "controlnet", "redux"])
    def test_conditions(self, pipe, other, stock, name):
        conditions = [CASES[name].build()]
        check_both_ways(
            lambda **more: draw(pipe, conditions=conditions, **more), lambda **more: draw(other, **OTHER, **more)
        )
        if name == "entities":
            check_both_ways(
                lambda **more: draw(pipe, conditions=conditions, **more), lambda **more: draw(stock, **OTHER, **more)
            )

    def test_hidden_padding(self, pipe, stock):
        """T5 runs in another thread while it hides padding in this one."""
        alone, masked, results = draw(stock), draw(pipe, mask_padding=True), []

        def draw_beside(module, args):
            if not results:
                results.append(None)
                results.append(InThread(lambda: draw(stock)).get())

        handle = pipe.text_encoder_2.register_forward_pre_hook(draw_beside)
        assert torch.equal(draw(pipe, mask_padding=True), masked)
        handle.remove()
        assert torch.equal(results[1], alone)
        assert not torch.equal(alone, masked)

    def test_two_threads_set_up_the_same_transformer(self, pipe, other, monkeypatch):
        """One ends between the other's look at the processors and its replacing of them."""
        conditions = [CASES["entities"].build()]
        alone = draw(pipe, conditions=conditions)
        looked, may_go, main = threading.Event(), threading.Event(), threading.current_thread()
        look, installing = processor._has_replaceable_processor, processor._INSTALLING

        def slow_look(layer):
            result = look(layer)
            if threading.current_thread() is not main and not looked.is_set():
                looked.set()
                assert may_go.wait(WAIT)
            return result

        class Installing:
            def __enter__(self):
                if threading.current_thread() is main:
                    # This thread waits for the other one now.
                    may_go.set()
                installing.acquire()

            def __exit__(self, *error):
                installing.release()

        monkeypatch.setattr(processor, "_has_replaceable_processor", slow_look)
        monkeypatch.setattr(processor, "_INSTALLING", Installing())
        slow = InThread(lambda: draw(other, conditions=conditions))
        assert looked.wait(WAIT)
        assert torch.equal(draw(pipe, conditions=conditions), alone)
        assert torch.equal(slow.get(), alone)
        assert not any("Regional" in type(each).__name__ for each in pipe.transformer.attn_processors.values())

    def test_timestep_lora(self, pipe, other, stock):
        load_timestep_lora(pipe, tiny_timestep_lora())
        check_forward_is_one_threads(pipe, stock)
        check_both_ways(lambda **more: draw(pipe, **more), lambda **more: draw(other, **OTHER, **more))

    def test_lora_fusion(self, pipe, other, stock):
        load_lora(pipe, small_lora())
        enable_lora_fusion(pipe, tiny_fusion())
        check_forward_is_one_threads(pipe, stock)
        check_both_ways(lambda **more: draw(pipe, **more), lambda **more: draw(other, **OTHER, **more))

    def test_scales_of_loras(self, pipe, other):
        load_lora(pipe, small_lora())
        check_forward_is_one_threads(pipe, other, joint_attention_kwargs={"scale": 0.3})

    def test_tea_cache(self, pipe, other, stock):
        apply_tea_cache(pipe.transformer, TeaCacheConfig(0.8, 5))
        check_forward_is_one_threads(pipe, stock)
        first = {"num_inference_steps": 5, "negative_prompt": "ugly", "true_cfg_scale": 2.0}
        for second in (other, stock):
            check_both_ways(lambda **more: draw(pipe, **first, **more), lambda **more: draw(second, **OTHER, **more))
        remove_tea_cache(pipe.transformer)
        assert not pipe.transformer._forward_pre_hooks
        assert not pipe.transformer._forward_hooks


def check_forward_is_one_threads(pipe, other, **arguments):
    """Another thread that calls the transformer in the middle of a forward pass waits for its end."""
    alone, others = draw(pipe, **arguments), draw(other, **OTHER)
    threads, arrived, main = [], threading.Event(), threading.current_thread()

    def start(module, args):
        if not threads:
            threads.append(InThread(draw_other))
            assert arrived.wait(WAIT)

    def draw_other():
        try:
            return draw(other, **OTHER)
        finally:
            arrived.set()

    def acquire(lock):
        # The other thread may come here before it stands in `threads`.
        if threading.current_thread() is not main and lock is pipe.transformer.__dict__[GUARD].lock:
            arrived.set()
        return take(lock)

    take = ForwardLock.acquire
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForwardLock, "acquire", acquire)
        handle = pipe.transformer.transformer_blocks[1].register_forward_pre_hook(start)
        assert torch.equal(draw(pipe, **arguments), alone)
        assert torch.equal(threads[0].get(), others)
        handle.remove()


class TestRefused:
    def test_diffusers_caches(self, pipe):
        other = quiet(FluxConditionedPipeline.from_pipe(pipe))
        pipe.transformer.enable_cache(FirstBlockCacheConfig(0.2))
        for arrange in (during, beside):
            callback, _ = arrange(lambda: draw(other))
            with pytest.raises(RuntimeError, match=r"`transformer` is in use.*FirstBlockCache.*one call at a time"):
                draw(pipe, callback_on_step_end=callback)

    def test_offloading_in_another_thread(self, pipe):
        expected = draw(pipe)
        pipe.text_encoder_2.to("cpu")
        pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        callback, _ = beside(lambda: draw(pipe))
        with pytest.raises(RuntimeError, match=r"thread 'MainThread', and has hooks \(\['group_offloading'\]\)"):
            draw(pipe, callback_on_step_end=callback)
        callback, results = during(lambda: draw(pipe))
        assert torch.equal(draw(pipe, callback_on_step_end=callback), expected)
        assert torch.equal(results[0], expected)

    def test_an_offloaded_module_of_two_conditions(self, pipe):
        other, conditions = tiny_pipeline(FluxConditionedPipeline), [CASES["controlnet"].build()]
        controlnet = conditions[0].controlnet
        controlnet.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        callback, _ = beside(lambda: draw(other, conditions=conditions))
        try:
            with pytest.raises(RuntimeError, match="`ControlNetImage.controlnet` is in use"):
                draw(pipe, conditions=conditions, callback_on_step_end=callback)
        finally:
            remove_group_offloading(controlnet)

    @pytest.mark.parametrize("text", ["prompt", "entity"])
    def test_a_tokenizer_whose_padding_another_thread_changes(self, pipe, monkeypatch, text):
        arguments = {}
        if text == "entity":
            prompt_embeds, pooled, _ = pipe.encode_prompt("a cat", None)
            arguments = {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled, "prompt": None}
            arguments["conditions"] = [CASES["entities"].build()]
        monkeypatch.setattr(type(pipe.tokenizer_2), "set_truncation_and_padding", lambda *args, **kwargs: None)
        with pytest.raises(RuntimeError, match=r"`tokenizer_2` returned \d+ tokens instead of.*deepcopy"):
            draw(pipe, **arguments)

    def test_a_stock_pipeline_with_the_same_scheduler(self, pipe):
        stock = quiet(pipe.to_pipeline(FluxPipeline))
        for arrange in (during, beside):
            callback, _ = arrange(lambda: draw(stock))
            with pytest.raises(RuntimeError, match="was set for another call while this one runs"):
                draw(pipe, callback_on_step_end=callback)


def test_copies_of_a_guarded_transformer_have_locks_of_their_own(pipe):
    load_timestep_lora(pipe, tiny_timestep_lora())
    expected = draw(pipe)
    other = tiny_pipeline(FluxConditionedPipeline, transformer=copy.deepcopy(pipe.transformer))
    guards = [each.transformer.__dict__["_flux_ext_forward_guard"] for each in (pipe, other)]
    assert guards[0].lock is not guards[1].lock
    assert torch.equal(draw(other), expected)
