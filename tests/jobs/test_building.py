"""From jobs to objects and back: nothing is lost, for every condition and every kind of value."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_flux_ext as dfx
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from diffusers_flux_ext.jobs import JobError, JobFiles, build_call, job_from_call, read_job
from diffusers_flux_ext.jobs.building import load_from
from diffusers_flux_ext.methods.classes import condition_methods
from tests.fixtures.jobs import BOX, EXAMPLES, STROKES


@pytest.fixture(scope="module")
def load(files):
    # Modules of one path are one module, as in a runner.
    return functools.cache(functools.partial(load_from, files, place="", dtype=torch.float32))


def built(job, files, load):
    return build_call(job, files, load=lambda value, place: load(value))


def job_of(*conditions, **call):
    return read_job({"model": "tiny", "conditions": list(conditions), "call": call})


def test_every_registered_condition_has_an_example():
    assert set(EXAMPLES) == set(condition_methods())


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_job_is_the_same_after_objects_were_made_of_it(name, files, load):
    job = job_of({"type": name, **EXAMPLES[name]}, prompt="a white background", seed=[4], image="photo.png")
    made = built(job, files, load)
    assert type(made.conditions[0]).__name__ == name
    again = job_from_call(made.pipeline, model="tiny", conditions=made.conditions, origins=made.origins, **made.call)
    assert again == job
    assert again.to_dict() == job.to_dict()


@pytest.mark.parametrize("name", EXAMPLES)
def test_objects_become_a_job_that_makes_equal_objects(name, files, load):
    first = built(job_of({"type": name, **EXAMPLES[name]}, image="photo.png", seed=4), files, load)
    paths = {}
    inline = job_from_call(first.pipeline, model="tiny", modules=known(paths, first), conditions=first.conditions,
                           **first.call)  # fmt: skip
    second = built(inline, JobFiles(allow_paths=False), lambda value: paths[value.path])
    assert job_from_call(
        second.pipeline, model="tiny", modules=paths, conditions=second.conditions, **second.call
    ) == inline  # fmt: skip
    for one, other in zip(first.conditions, second.conditions, strict=True):
        for field in vars(one):
            assert_same(getattr(one, field), getattr(other, field))
    assert_same(first.call, second.call)


def known(paths, made):
    """Name the modules of conditions, as someone who has loaded them would."""
    for condition in made.conditions:
        for name, value in vars(condition).items():
            if isinstance(value, torch.nn.Module):
                paths[name] = value
    return paths


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for each in zip(one, other):
            assert_same(*each)
    elif isinstance(one, Image.Image):
        assert one.mode == other.mode
        assert np.array_equal(np.asarray(one), np.asarray(other))
    elif isinstance(one, (np.ndarray, torch.Tensor)):
        assert np.array_equal(one, other)
    elif isinstance(one, torch.Generator):
        assert one.initial_seed() == other.initial_seed()
    elif isinstance(one, torch.nn.Module):
        assert one is other
    else:
        assert one == other


def test_arrays_and_tensors_stay_what_they_are():
    pixels = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    condition = dfx.ReferenceImages([pixels, torch.from_numpy(pixels).movedim(-1, 0)])
    job = job_from_call(dfx.FluxConditionedPipeline, model="tiny", conditions=[condition], prompt="a cat")
    (again,) = build_call(job).conditions
    assert [type(image) for image in again.images] == [np.ndarray, torch.Tensor]
    assert_same(again.images, list(condition.images))


def test_strokes_and_boxes_are_regions_of_the_canvas(files, load):
    job = job_of({"type": "EntityRegions", "prompts": ["a", "b"], "masks": [BOX, STROKES]}, width=96, height=64)
    (condition,) = built(job, files, load).conditions
    assert condition.masks[0] == tuple(BOX)
    assert condition.masks[1].size == (96, 64)


def test_a_processor_beside_its_model_comes_with_it(tmp_path):
    asked = []
    (tmp_path / "qwen" / "processor").mkdir(parents=True)
    (tmp_path / "qwen" / "processor" / "preprocessor_config.json").write_text("{}")
    job = read_job({"model": "tiny", "pipeline": "FluxStep1XEditPipeline", "components": {"mllm": {"path": "qwen"}}})
    made = build_call(job, JobFiles(tmp_path), load=lambda value, place: asked.append((place, value.path)))
    assert set(made.components) == {"mllm", "mllm_processor"}
    assert asked[1] == ("components.mllm_processor", str(tmp_path / "qwen" / "processor"))


def test_a_seed_is_a_generator_on_the_cpu(files, load):
    one, several = built(job_of(prompt="a", seed=5), files, load), built(job_of(prompt="a", seed=[5, 6]), files, load)
    assert one.call["generator"].initial_seed() == 5
    assert [each.initial_seed() for each in several.call["generator"]] == [5, 6]
    assert built(job_of(prompt="a"), files, load).call["generator"].initial_seed() == 0


def test_what_a_job_cannot_express_is_named():
    call = functools.partial(job_from_call, dfx.FluxConditionedPipeline, model="tiny")
    used = torch.Generator().manual_seed(0)
    torch.rand(1, generator=used)
    wrong = {
        "call.generator": {"generator": used},
        "call.callback_on_step_end": {"callback_on_step_end": print},
        "call.image": {"image": Image.new("F", (8, 8))},
    }
    for field, arguments in wrong.items():
        with pytest.raises(JobError) as caught:
            call(prompt="a", **arguments)
        assert [problem.field for problem in caught.value.problems] == [field]
    with pytest.raises(JobError, match="`conditions.0.encoder`: no path is known of this Attr"):
        call(conditions=[dfx.AttributeValues(tiny_value_encoder(), {})])
