"""The denoising loop reads no tensor back to the host, and what is the same at every step is made once."""

import traceback
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from benchmarks.support.tiny.synthetic import never
from diffusers_flux_ext import (
    Contribution,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    FluxFlowMatchScheduler,
    PromptEmbeds,
)
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


# Operators that read values on the host, or whose result's shape depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "is_nonzero")
READING = ("tolist", "cpu", "numpy", "item", "__bool__", "__int__", "__float__")


@pytest.mark.parametrize("scheduler, guided", [(None, True), (FluxFlowMatchScheduler(), False)], ids=["stock", "own"])
def test_the_plain_loop_runs_on_tensors_without_values(scheduler, guided):
    """Tensors on the meta device have no values that could be read."""
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0).to("meta"))
    pipe.scheduler = scheduler or pipe.scheduler
    pipe.scheduler.set_timesteps(3, device="meta")
    pipe.scheduler.set_begin_index(0)
    pipe._guidance_scale, pipe._joint_attention_kwargs, pipe._interrupt = 3.5, {}, False
    meta = {"device": "meta"}
    prompt = PromptEmbeds(torch.zeros(2, 7, 40, **meta), torch.zeros(2, 24, **meta), torch.zeros(7, 3, **meta))
    latents = pipe.denoise(
        torch.zeros(2, 6, 64, **meta),
        torch.zeros(6, 3, **meta),
        pipe.scheduler.timesteps,
        prompt,
        prompt if guided else None,
        EncodedConditions(pipe, [], None),
        [{}, {}],
        2.0,
        lambda *args: {},
        ["latents"],
    )
    assert latents.shape == (2, 6, 64)


class Spy(TorchDispatchMode):
    """Notes where tensors are read, while it is on."""

    def __init__(self):
        super().__init__()
        self.on, self.places = False, set()

    def note(self, what):
        if self.on:
            frames = [frame for frame in traceback.extract_stack() if "test_loop_cost" not in frame.filename]
            ours = [frame for frame in frames if "diffusers_flux_ext" in frame.filename]
            self.places.add((what, *(f"{frame.filename}:{frame.lineno}" for frame in ours[-1:])))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(WAITING):
            self.note(name)
        return function(*args, **(kwargs or {}))


def places_that_wait(pipe, conditions):
    """Where the second of two steps reads a tensor; the first may, as for the masks of the attention rules."""
    spy = Spy()

    def turn_on(pipe, index, timestep, tensors):
        spy.on = index < 1
        return {}

    with pytest.MonkeyPatch.context() as patch, spy:
        for method in READING:
            original = getattr(torch.Tensor, method)

            def read(tensor, *args, original=original, method=method, **kwargs):
                spy.note(method)
                return original(tensor, *args, **kwargs)

            patch.setattr(torch.Tensor, method, read)
        pipe(**call_kwargs(conditions=conditions, num_inference_steps=2, callback_on_step_end=turn_on))
    return sorted(spy.places)


def test_no_condition_makes_later_steps_wait():
    found = {name: places_that_wait(pipeline_for(name), [CASES[name].build()]) for name in METHODS}
    assert {name: places for name, places in found.items() if places} == {}


def test_the_spy_sees_what_waits():
    @dataclass(frozen=True, eq=False)
    class Waiting(FluxCondition):
        reuse = never

        def contribute(self, encoded, step):
            if step.timestep[0] > 2:
                raise ValueError
            return Contribution(channels=[step.latents[:, :, : int(step.guidance[0] * 0)]])

    places = places_that_wait(pipeline_for(), [Waiting()])
    assert {place[0] for place in places} >= {"__bool__", "__int__", "_local_scalar_dense"}


def test_texts_are_encoded_once():
    pipe, calls = tiny_pipeline(FluxConditionedPipeline), []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.register_forward_pre_hook(lambda module, inputs: calls.append(type(module).__name__))
    conditions = [EntityRegions(["a red dog", "a tree"], [(0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5)])]
    pipe(**call_kwargs(conditions=conditions, num_inference_steps=3, negative_prompt="ugly", true_cfg_scale=2.0))
    # The prompt and the negative one; the entities go through T5 in one batch.
    assert sorted(calls) == ["CLIPTextModel"] * 2 + ["T5EncoderModel"] * 3
