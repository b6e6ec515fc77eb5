"""All pipelines of diffusers that call a FLUX.1 transformer run attached conditions, and stay what they are."""

import inspect
import json

import diffusers
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines import flux

from benchmarks.support.conditions import CASES
from diffusers_flux_ext import FluxConditionedPipeline, attach_conditions, attached_conditions, detach_conditions
from diffusers_flux_ext.pipeline.attached.stock import STOCK_CLASSES
from diffusers_flux_ext.testing import different, tiny_pipeline
from tests.fixtures.stock_pipelines import CALLS, GUIDED, MASKED, draw, stock_call, stock_pipeline


pytestmark = pytest.mark.versions
EVERYWHERE = ("entities", "controlnet", "ip-adapter", "redux", "attributes")


def drive_transformers():
    """The names of diffusers' FLUX.1 pipelines whose constructor takes a transformer."""
    names = [name for names in flux._import_structure.values() for name in names if name.endswith("Pipeline")]
    return {name for name in names if "transformer" in inspect.signature(getattr(diffusers, name).__init__).parameters}


def test_every_class_of_diffusers_is_known():
    # A new class upstream fails here; until its loop is known, attaching to it is refused.
    assert drive_transformers() == set(STOCK_CLASSES) == set(CALLS)
    assert len(STOCK_CLASSES) == 12


def test_the_guided_and_the_masked_classes_are_those_with_the_arguments():
    arguments = {name: inspect.signature(getattr(diffusers, name).__call__).parameters for name in CALLS}
    assert {name for name, given in arguments.items() if "negative_prompt" in given} == set(GUIDED)
    assert {name for name, given in arguments.items() if "mask_image" in given} == set(MASKED)
    assert len(MASKED) == 5


@pytest.mark.parametrize("name", CALLS)
def test_every_class_runs_what_has_no_channels_of_its_own(name):
    pipe = stock_pipeline(name)
    before = draw(pipe)
    drawn = []
    for case in EVERYWHERE:
        with attach_conditions(pipe, [CASES[case].build()]):
            drawn.append(draw(pipe))
    assert all(different(before, images, 1e-3) for images in drawn)
    assert torch.equal(draw(pipe), before)


@pytest.mark.parametrize("name", CALLS)
def test_every_class_runs_several_at_once_in_a_batch(name):
    pipe, branches = stock_pipeline(name), []
    prompts = {"prompt": ["a cat", "a red dog"], "num_images_per_prompt": 2}
    if name in GUIDED:
        prompts |= {"negative_prompt": ["ugly", "low"], "true_cfg_scale": 2.0}
    # Samples of a batch share their generator in stock pipelines, so noise is not compared with that of single calls.
    before = draw(pipe, **prompts)
    conditions = [CASES[case].build() for case in EVERYWHERE]
    for condition in conditions:
        object.__setattr__(condition, "replace_prompt", lambda encoded, step: branches.append(step.branch))
    with attach_conditions(pipe, conditions):
        after = draw(pipe, **prompts)
    assert after.shape == before.shape
    assert different(after, before, 1e-3)
    assert set(branches) == ({"cond", "uncond"} if name in GUIDED else {"cond"})


@pytest.mark.parametrize("name", CALLS)
def test_inpainting_runs_where_the_pipeline_has_no_mask_of_its_own(name):
    pipe, region = stock_pipeline(name), CASES["inpaint"].build()
    if name in MASKED:
        with pytest.raises(ValueError, match=f"InpaintRegion decides.*{name} decides them by `mask_image`"):
            attach_conditions(pipe, [region])
        assert attached_conditions(pipe) == []
        return
    with attach_conditions(pipe, [region]):
        images = draw(pipe)
    # The mask is (0, 0, 0.67, 1) of 48 columns.
    torch.testing.assert_close(images[..., 33:], region.image[..., 33:])
    assert different(images[..., :32], region.image[..., :32], 1e-2)


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxControlNetPipeline", "FluxKontextInpaintPipeline"])
def test_a_pipeline_stays_what_it_is(name, tmp_path):
    pipe = stock_pipeline(name)
    state, kind, parts = set(vars(pipe)), type(pipe), pipe.components
    signature = inspect.signature(pipe.__call__)
    pipe.save_pretrained(tmp_path / "before")
    attach_conditions(pipe, [CASES["entities"].build()])
    assert type(pipe) is kind
    assert pipe.components == parts
    assert inspect.signature(pipe.__call__) == signature
    pipe.save_pretrained(tmp_path / "attached")
    files = [sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.json")) for name in
             ("before", "attached")]  # fmt: skip
    assert files[0] == files[1]
    for path in files[0]:
        assert json.loads((tmp_path / "before" / path).read_text()) == json.loads(
            (tmp_path / "attached" / path).read_text()
        )
    draw(pipe)
    detach_conditions(pipe)
    assert set(vars(pipe)) - state <= {"_guidance_scale", "_joint_attention_kwargs", "_current_timestep", "_interrupt",
                                       "_num_timesteps"}  # fmt: skip


def test_nothing_is_left_on_shared_parts_after_a_call():
    pipe = stock_pipeline("FluxPipeline")
    processors = [type(each) for each in pipe.transformer.attn_processors.values()]
    with attach_conditions(pipe, [CASES["entities"].build(), CASES["inpaint"].build()]):
        draw(pipe)
        assert not pipe.transformer._forward_pre_hooks
        assert not pipe.transformer._forward_hooks
        assert "step" not in vars(pipe.scheduler)
        assert "scale_noise" not in vars(pipe.scheduler)
        assert "postprocess" not in vars(pipe.image_processor)
        assert [type(each) for each in pipe.transformer.attn_processors.values()] == processors


def test_a_subclass_with_the_same_call_is_taken():
    class Renamed(FluxPipeline):
        """A user's class."""

    pipe, condition = tiny_pipeline(Renamed), CASES["entities"].build()
    with attach_conditions(pipe, condition):
        images = pipe(**stock_call("FluxPipeline")).images
    ours = FluxConditionedPipeline.from_pipe(pipe)
    ours.set_progress_bar_config(disable=True)
    assert torch.equal(images, ours(**stock_call("FluxPipeline", conditions=[condition])).images)


class OwnLoop(FluxPipeline):
    """A user's class with another loop."""

    def __call__(self, prompt):
        """Draw nothing."""


class FluxTomorrowPipeline(diffusers.DiffusionPipeline):
    """A class that diffusers may have one day."""

    def __init__(self, transformer: FluxTransformer2DModel):
        super().__init__()
        self.register_modules(transformer=transformer)


def test_other_classes_are_refused_with_what_to_do():
    condition = CASES["entities"].build()
    tomorrow = FluxTomorrowPipeline(tiny_pipeline(FluxPipeline).transformer)
    with pytest.raises(TypeError, match="FluxControlImg2ImgPipeline.*got FluxTomorrowPipeline.*from_pipe"):
        attach_conditions(tomorrow, [condition])
    with pytest.raises(TypeError, match="OwnLoop replaces `__call__` of FluxPipeline"):
        attach_conditions(tiny_pipeline(OwnLoop), [condition])
    with pytest.raises(TypeError, match=r"FluxConditionedPipeline takes conditions itself.*conditions=\[...\]"):
        attach_conditions(tiny_pipeline(FluxConditionedPipeline), [condition])
    with pytest.raises(TypeError, match="`pipe` must be a FLUX pipeline of diffusers, got"):
        attach_conditions(tomorrow.transformer, [condition])
