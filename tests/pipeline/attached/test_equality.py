"""Attached conditions draw what `FluxConditionedPipeline` draws, bit for bit."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from benchmarks.support.conditions import CASES
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxFlowMatchScheduler,
    ReferenceImages,
    attach_conditions,
)
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_components
from tests.fixtures.stock_pipelines import IMAGE, draw, stock_call, stock_pipeline


pytestmark = pytest.mark.versions
CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline")
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
NAMES = [name for name, case in CASES.items() if not case.channels]


@pytest.fixture(scope="module")
def pipes():
    made: dict[str, Any] = {name: stock_pipeline(name) for name in CLASSES}
    return {**made, "ours": quiet(FluxConditionedPipeline.from_pipe(stock_pipeline("FluxPipeline")))}


def attached(pipe, conditions, **arguments):
    with attach_conditions(pipe, conditions):
        return draw(pipe, **arguments)


def ours(pipe, kind, conditions, **arguments):
    """The same call of our pipeline; Kontext's image is a reference there."""
    given = stock_call(kind, **arguments)
    if kind == "FluxKontextPipeline":
        del given["_auto_resize"], given["max_area"]
        conditions = [ReferenceImages([given.pop("image")], preferred_size=False), *conditions]
    return pipe(conditions=conditions, **given).images


# Kontext refuses a second set of references, see test_refusals.py.
CROSSED = [(kind, name) for kind in CLASSES for name in NAMES if (kind, name) != ("FluxKontextPipeline", "references")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CROSSED)
def test_every_condition(pipes, kind, name):
    # Step1X-Edit's rule of guidance is refused, see test_refusals.py.
    guided = {} if name == "step1x" else GUIDED
    build = CASES[name].build
    assert torch.equal(attached(pipes[kind], [build()], **guided), ours(pipes["ours"], kind, [build()], **guided))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", ["entities", "controlnet", "inpaint", "step1x"])
def test_without_guidance(pipes, kind, name):
    build = CASES[name].build
    assert torch.equal(attached(pipes[kind], [build()]), ours(pipes["ours"], kind, [build()]))


@pytest.mark.parametrize("kind", CLASSES)
def test_no_condition_is_the_pipeline_itself(pipes, kind):
    assert torch.equal(attached(pipes[kind], [], **GUIDED), draw(pipes[kind], **GUIDED))


TOGETHER = ("entities", "ip-adapter", "controlnet", "inpaint", "attributes")
CALLS = {
    "batch": {"prompt": ["a cat", "a red dog"], "negative_prompt": ["ugly", "low"], "true_cfg_scale": 2.0},
    "images per prompt": {"prompt": ["a cat", "a red dog"], "num_images_per_prompt": 2},
    "text length": {"max_sequence_length": 24},
    "latent output": {"output_type": "latent"},
    "generators": {"prompt": ["a cat", "a dog"], "generator": (1, 2)},
    "odd size": {"height": 40, "width": 50},
    "sigmas": {"sigmas": [1.0, 0.5, 0.2], "strength": 1.0},
    "arrays": {"output_type": "np"},
    "one step": {"num_inference_steps": 1, "strength": 1.0},
    "attention arguments": {"joint_attention_kwargs": {"scale": 0.5}},
}


@pytest.mark.parametrize("kind", CLASSES[:2])
@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
def test_every_kind_of_call(pipes, kind, arguments):
    def call():
        fresh = dict(arguments)
        if kind == "FluxPipeline":
            fresh.pop("strength", None)
        if "generator" in fresh:
            fresh["generator"] = [seeded(seed) for seed in fresh["generator"]]
        return fresh

    build = [CASES[name].build for name in TOGETHER]
    one = attached(pipes[kind], [make() for make in build], **call())
    other = ours(pipes["ours"], kind, [make() for make in build], **call())
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_given_latents_and_embeddings(pipes):
    pipe = pipes["FluxPipeline"]
    texts = pipe.encode_prompt(["a cat", "a dog"], max_sequence_length=16)[:2]
    negative = pipe.encode_prompt(["ugly", "low"], max_sequence_length=16)[:2]
    given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), texts)) | {"prompt": None, "true_cfg_scale": 2.0}
    given |= dict(zip(("negative_prompt_embeds", "negative_pooled_prompt_embeds"), negative))
    given["latents"] = torch.randn(2, 6, 64, generator=seeded(4))
    conditions = [CASES[name].build() for name in TOGETHER]
    assert torch.equal(attached(pipe, conditions, **given), ours(pipes["ours"], "FluxPipeline", conditions, **given))


SCHEDULERS = {
    "static shift": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic shift": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "ours": FluxFlowMatchScheduler(),
    "unipc": UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
    ),
    "dpm": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_every_scheduler(pipes, scheduler):
    if isinstance(scheduler, FluxFlowMatchScheduler):
        # Its own time grid is set by our pipelines alone.
        scheduler = FluxFlowMatchScheduler(base_grid="diffusers")
    stock = stock_pipeline("FluxPipeline", scheduler=scheduler)
    own = quiet(FluxConditionedPipeline.from_pipe(stock))
    conditions = [CASES["entities"].build(), CASES["inpaint"].build()]
    results = []
    for run in (lambda: attached(stock, conditions), lambda: ours(own, "FluxPipeline", conditions)):
        torch.manual_seed(0)
        results.append(run())
    assert torch.equal(*results)


def test_half_precision():
    components = {
        name: part.to(torch.bfloat16) if isinstance(part, torch.nn.Module) else part
        for name, part in tiny_components(0).items()
    }
    stock = stock_pipeline("FluxPipeline", **components)
    own = quiet(FluxConditionedPipeline.from_pipe(stock))
    conditions = [CASES["entities"].build(), CASES["inpaint"].build()]
    images = attached(stock, conditions, **GUIDED)
    assert bool(images.isfinite().all())
    assert torch.equal(images, ours(own, "FluxPipeline", conditions, **GUIDED))


def test_references_attached_to_kontext_without_an_image(pipes):
    references = ReferenceImages([IMAGE], preferred_size=False)
    pipe = pipes["FluxKontextPipeline"]
    assert torch.equal(
        attached(pipe, [references], image=None), pipes["ours"](**call_kwargs(conditions=[references])).images
    )
