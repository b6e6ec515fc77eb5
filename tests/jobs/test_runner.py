"""Running jobs: the same pixels as the same call in Python, and no trace of one job in the next."""

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel
from PIL import Image

import diffusers_flux_ext as dfx
from diffusers_flux_ext.jobs import JobCancelled, JobError, JobFiles, JobRunner, read_job
from diffusers_flux_ext.testing import quiet
from diffusers_flux_ext.tiny import ASSETS
from tests.fixtures.jobs import BOX, STROKES, write_inputs


CALL = {"width": 64, "height": 64, "num_inference_steps": 2, "max_sequence_length": 32}
SIZE_LORA = "tiny_flux_size_lora.safetensors"
PROMPT = "a white background"
ENTITIES = {"type": "EntityRegions", "prompts": ["a red circle"], "masks": [BOX]}
OUTLINES = {"type": "ControlNetImage", "controlnet": "tiny", "image": "outlines.png", "scale": 0.8}
LORA = {"path": "tiny", "weight": 0.75}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def runner():
    return JobRunner(device="cpu")


@pytest.fixture(scope="module")
def draw(runner, inputs):
    return lambda on_step=None, files=JobFiles(inputs), **content: runner.run(job(**content), files, on_step)


@pytest.fixture
def pipe(shared_pipe):
    yield shared_pipe
    dfx.unload_lora(shared_pipe)


@pytest.fixture(scope="module")
def shared_pipe():
    return quiet(dfx.FluxConditionedPipeline.from_pretrained(dfx.tiny_flux_path(), dtype=torch.float32))


@pytest.fixture(scope="module")
def controlnet():
    return FluxControlNetModel.from_pretrained(ASSETS / "tiny_flux_controlnet", torch_dtype=torch.float32)


def job(call=None, **content):
    return read_job({"model": "tiny", "call": {"prompt": PROMPT, **CALL, **(call or {})}, **content})


def seeded(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if len(made) == 1 else made


def same(images, others):
    return len(images) == len(others) and all(np.array_equal(*pair) for pair in zip(images, others))


def test_entities_a_controlnet_and_a_lora_are_those_of_the_call(draw, pipe, controlnet, inputs):
    guided = {"negative_prompt": "", "true_cfg_scale": 2.0, "seed": 3}
    result = draw(call=guided, loras=[LORA], conditions=[ENTITIES, OUTLINES])
    dfx.load_lora(pipe, ASSETS / "tiny_flux_eligen_lora.safetensors", weight=0.75)
    conditions = [
        dfx.EntityRegions(["a red circle"], [tuple(BOX)]),
        dfx.ControlNetImage(controlnet, Image.open(inputs / "outlines.png"), 0.8),
    ]
    images = pipe(
        PROMPT, negative_prompt="", true_cfg_scale=2.0, conditions=conditions, generator=seeded(3), **CALL
    ).images
    assert same(result.images, images)
    assert result.seeds == [3]
    assert result.seconds > 0


def test_attributes_with_their_lora_are_those_of_the_call(draw, pipe):
    values = {"type": "AttributeValues", "encoder": "tiny", "values": {"size": 0.9}}
    result = draw(loras=[{"path": "tiny", "weight_name": SIZE_LORA}], conditions=[values])
    dfx.load_lora(pipe, ASSETS / SIZE_LORA)
    encoder = dfx.AttributeValueEncoder.from_pretrained(ASSETS / "tiny_flux_size_encoder", torch_dtype=torch.float32)
    conditions = [dfx.AttributeValues(encoder, {"size": 0.9})]
    assert same(result.images, pipe(PROMPT, conditions=conditions, generator=seeded(0), **CALL).images)


def test_an_image_to_start_from_is_that_of_the_call(draw, pipe, inputs):
    result = draw(call={"image": "photo.png", "strength": 0.5, "seed": 1})
    photo = Image.open(inputs / "photo.png")
    assert same(result.images, pipe(PROMPT, image=photo, strength=0.5, generator=seeded(1), **CALL).images)


def test_inpainting_and_references_are_those_of_the_call(draw, pipe, inputs):
    photo, mask = Image.open(inputs / "photo.png"), Image.open(inputs / "mask.png")
    given = [
        {"type": "InpaintRegion", "image": "photo.png", "mask": "mask.png"},
        {"type": "ReferenceImages", "images": "photo.png", "preferred_size": False},
    ]
    conditions = [dfx.InpaintRegion(photo, mask), dfx.ReferenceImages(photo, preferred_size=False)]
    images = pipe(PROMPT, conditions=conditions, generator=seeded(0), **CALL).images
    assert same(draw(conditions=given).images, images)


def test_one_seed_and_several_are_the_generators_of_the_call(draw, pipe):
    call = {"num_images_per_prompt": 2}
    one = draw(call={**call, "seed": 7})
    several = draw(call={**call, "seed": [7, 8]})
    assert (one.seeds, several.seeds) == ([7, 7], [7, 8])
    assert same(one.images, pipe(PROMPT, generator=seeded(7), **call, **CALL).images)
    assert same(several.images, pipe(PROMPT, generator=seeded(7, 8), **call, **CALL).images)


def test_a_named_pipeline_shares_the_model_and_draws_what_its_call_draws(draw, runner, shared_pipe):
    draw()
    call = {"entity_prompts": ["a blue star"], "entity_masks": [STROKES]}
    result = draw(pipeline="FluxEliGenPipeline", call=call)
    assert len(runner._models._models) == 1
    (model,) = runner._models._models.values()
    assert len({id(each.transformer) for each in model.pipelines.values()}) == 1
    named = quiet(dfx.FluxEliGenPipeline.from_pipe(shared_pipe))
    mask = region(STROKES)
    images = named(PROMPT, entity_prompts=["a blue star"], entity_masks=[mask], generator=seeded(0), **CALL).images
    assert same(result.images, images)


def test_a_component_of_a_named_pipeline_is_loaded(draw, shared_pipe):
    call = {"attribute_values": {"size": 0.1}}
    result = draw(pipeline="FluxAttributeControlPipeline", components={"value_encoder": "tiny"}, call=call)
    encoder = dfx.AttributeValueEncoder.from_pretrained(ASSETS / "tiny_flux_size_encoder", torch_dtype=torch.float32)
    named = quiet(dfx.FluxAttributeControlPipeline.from_pipe(shared_pipe, value_encoder=encoder))
    assert same(result.images, named(PROMPT, attribute_values={"size": 0.1}, generator=seeded(0), **CALL).images)


def test_loras_leave_no_trace_in_other_jobs(draw):
    plain, first = draw().images, draw(loras=[LORA], conditions=[ENTITIES]).images
    other = draw(loras=[{**LORA, "weight": 0.5}, {"path": "tiny", "weight_name": SIZE_LORA}]).images
    assert not same(plain, first)
    assert not same(plain, other)
    assert same(draw(loras=[LORA], conditions=[ENTITIES]).images, first)
    assert same(draw().images, plain)


def test_a_lora_that_does_not_fit_leaves_the_model_as_it_was(draw, tmp_path):
    plain = draw().images
    (tmp_path / "broken.safetensors").write_bytes(b"no LoRA")
    with pytest.raises(JobError) as caught:
        draw(loras=[LORA, {"path": str(tmp_path / "broken.safetensors")}])
    assert [problem.field for problem in caught.value.problems] == ["loras.1.path"]
    assert same(draw().images, plain)


def test_texts_are_encoded_once(draw, runner, monkeypatch):
    call = {"prompt": "a yellow square", "negative_prompt": "", "true_cfg_scale": 2.0}
    first = draw(call=call, conditions=[ENTITIES]).images
    (model,) = runner._models._models.values()
    encoder = next(iter(model.pipelines.values())).text_encoder_2
    monkeypatch.setattr(encoder, "forward", None)
    assert same(draw(call=call, conditions=[ENTITIES]).images, first)


def test_a_cache_is_gone_after_its_job(draw):
    call = {"num_inference_steps": 6}
    plain = draw(call=call).images
    cached = draw(call=call, memory={"cache": {"name": "tea", "threshold": 5.0}}).images
    assert not same(cached, plain)
    assert same(draw(call=call).images, plain)


def test_each_step_is_told_with_a_preview_of_the_image(draw):
    told, previews = [], []

    def on_step(info):
        told.append((info.step, info.total))
        previews.append(info.preview())

    with_steps = draw(on_step, call={"num_inference_steps": 4})
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {preview.size for preview in previews} == {(8, 8)}
    small = np.asarray(with_steps.images[0].resize((8, 8), Image.Resampling.BOX), dtype=float)
    errors = [np.abs(np.asarray(preview, dtype=float) - small).mean() for preview in previews]
    # Of 255; the estimates come closer to the image from step to step.
    assert errors[-1] < 20
    assert errors == sorted(errors, reverse=True)
    assert same(with_steps.images, draw(call={"num_inference_steps": 4}).images)


def test_what_on_step_raises_ends_the_call_and_comes_out_as_it_is(draw):
    plain = draw().images
    for kind in (JobCancelled, ValueError):
        told = []

        def stop(info, told=told, kind=kind):
            told.append(info.step)
            raise kind("enough")

        with pytest.raises(kind, match="enough") as caught:
            draw(stop)
        assert type(caught.value) is kind
        assert told == [1]
    assert same(draw().images, plain)


def test_what_only_the_call_can_know_names_its_field(draw):
    with pytest.raises(JobError) as caught:
        draw(call={"num_images_per_prompt": 2}, conditions=[{**OUTLINES, "image": ["outlines.png"] * 3}])
    assert [problem.field for problem in caught.value.problems] == ["conditions.0.image"]
    with pytest.raises(JobError) as caught:
        draw(call={"prompt_2": ["a", "b"]})
    assert [problem.field for problem in caught.value.problems] == ["call.prompt_2"]


def test_another_model_takes_the_place_of_the_last_one(draw, runner):
    draw(model={"path": "tiny", "dtype": "bfloat16"})
    (model,) = runner._models._models.values()
    assert next(iter(model.pipelines.values())).transformer.dtype == torch.bfloat16


def region(content):
    (condition,) = job(conditions=[{**ENTITIES, "masks": [content]}]).conditions
    return JobFiles().region(condition.masks[0], "", (64, 64))
