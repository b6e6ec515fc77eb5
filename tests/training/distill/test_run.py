"""Distillation from a configuration: the error falls, runs go on bit for bit, paths are made once, and errors."""

import os

import pytest
import torch
from safetensors.torch import load_file

from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.config.reading import ConfigurationError
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run.build import build_run
from diffusers_flux_ext.training.run.checks import check_run
from diffusers_flux_ext.training.run.validation import ValidationDistance


TEACHER = {"num_inference_steps": 6, "true_cfg_scale": 2.0}
REGIONS = {
    "type": "EntityRegions",
    "inputs": {"prompts": "eligen_entity_prompts", "masks": "eligen_entity_masks"},
    "options": {"max_sequence_length": 8},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 6))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def content(data, folder, cache, /, **changes):
    made = {
        "output": str(folder / "run"),
        "model": {"path": "tiny"},
        "data": {
            "sources": [{"path": data, "file_columns": ["image", "eligen_entity_masks"]}],
            "sizes": {"listed": {"listed": [[64, 64]]}},
            "text_length": 16,
            "held_out": 1,
            "cache": str(cache),
        },
        "distill": {"num_inference_steps": 2, "teacher": TEACHER},
        "train": {"lora": {"rank": 4}},
        "optimizer": {"lr": 0.003},
        "run": {"updates": 4, "save_every": 2, "log_every": 1, "batch_size": 2, "logs": ["jsonl"]},
    }
    for name, value in changes.items():
        made[name] = {**made.get(name, {}), **value} if isinstance(value, dict) else value
    return made


def built(*args, **changes):
    return build_run(read_config(content(*args, **changes)))


def paths(cache):
    return {path.name: os.stat(path).st_mtime_ns for path in (cache / "paths").iterdir()}


def distance(run):
    """The error of the whole sampler to the teacher's latents, over the samples that are trained on."""
    part = run.trainer.updates.loader.samples
    samples = [part.samples.sample(index) for index in part.chosen]
    return ValidationDistance(run.training, samples, run.trainer.make_batch)(0)["validation/loss"]


@pytest.mark.parametrize("method", ["end_to_end", "per_step"])
def test_the_distance_from_the_teacher_falls(data, cache, tmp_path, method):
    run = built(
        data, tmp_path, cache, distill={"method": method}, conditions=[REGIONS], validation={"every": 10},
        run={"updates": 10, "batch_size": 4},
    )  # fmt: skip
    before = distance(run)
    run()
    assert distance(run) < 0.7 * before
    lines = (tmp_path / "run/logs/log.jsonl").read_text()
    assert lines.count('"validation/loss"') == 1


def test_students_of_any_number_of_steps_share_the_paths_ends(data, tmp_path):
    shared = tmp_path / "cache"
    first = built(data, tmp_path / "two", shared)
    made = paths(shared)
    second = built(data, tmp_path / "three", shared, distill={"num_inference_steps": 3})
    assert paths(shared) == made
    for run, steps in ((first, 2), (second, 3)):
        path = run.trainer.updates.loader.samples.samples.sample(0).path
        assert (path.states.shape[1], len(path.sigmas)) == (2, steps + 1)
    built(data, tmp_path / "each", shared, distill={"method": "per_step"})
    assert len(paths(shared)) > len(made)


@pytest.fixture(scope="module")
def whole(data, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (file,) = built(data, folder, cache, distill={"noises": 2, "method": "per_step"})()
    return load_file(file)


def test_a_run_goes_on_bit_for_bit_and_the_teacher_draws_once(data, cache, tmp_path, whole):
    before = paths(cache)
    changes = {"distill": {"noises": 2, "method": "per_step"}}
    first = built(data, tmp_path, cache, **changes)
    first.trainer.settings = type(first.trainer.settings)(2, save_every=2)
    first()
    second = built(data, tmp_path, cache, **changes)
    assert second.trainer.step == 2
    (file,) = second()
    assert all(torch.equal(value, whole[name]) for name, value in load_file(file).items())
    assert paths(cache) == before


def test_paths_are_made_anew_where_the_teacher_is_another_one(data, cache, tmp_path, whole):
    before, drawn = paths(cache), {"noises": 2, "method": "per_step"}
    for changes in ({"distill": drawn}, {"run": {"updates": 3}, "distill": drawn}):
        assert build_run(read_config(content(data, tmp_path, cache, **changes)), until_cache=True) is None
        assert paths(cache) == before
    other = {"distill": {**drawn, "teacher": {**TEACHER, "negative_prompt": "blue"}}}
    assert build_run(read_config(content(data, tmp_path, cache, **other)), until_cache=True) is None
    assert len(paths(cache)) > len(before)
    assert before.items() <= paths(cache).items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"cache": None}}, "set `data.cache`"),
        ({"loss": {"levels": {"name": "uniform"}}}, "got `distill` with loss.levels"),
        ({"loss": {"weighting": {"name": "bell"}}}, "got `distill` with loss.weighting"),
        ({"data": {"posterior": True}}, "data.posterior"),
        ({"conditions": [{**REGIONS, "dropout": 0.1}]}, "dropout of conditions"),
        ({"distill": {"num_inference_steps": 7}}, "got 7 steps of the student and 6 of the teacher"),
        ({"distill": {"teacher": {"negative_prompt": "bad"}}}, "where it has no effect; set `true_cfg_scale` above 1"),
        ({"distill": {"teacher": {"true_cfg_scale": 0.5}}}, "distill.teacher.true_cfg_scale"),
        ({"distill": {"method": "per_stop"}}, "distill.method"),
    ],
)
def test_what_does_not_fit_is_named(data, cache, tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        read_config(content(data, tmp_path, cache, **changes))


def test_steps_are_not_trained_one_by_one_where_a_condition_acts_in_some(data, cache, tmp_path):
    flex = {"type": "FlexControl", "inputs": {"control_image": "image"}}
    made = content(data, tmp_path, cache, conditions=[flex], distill={"method": "per_step"})
    with pytest.raises(ValueError, match="FlexControl acts in a part of the steps.*`control_stop` is 0.5"):
        check_run(read_config(made))
