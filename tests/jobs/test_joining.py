"""Jobs that differ in prompt and seed only, in one call."""

import numpy as np
import pytest

from diffusers_flux_ext.jobs import JobRunner, can_join, joined, read_job


ENTITIES = {"type": "EntityRegions", "prompts": ["a red circle"], "masks": [[0.1, 0.1, 0.5, 0.5]]}
CALL = {"width": 64, "height": 64, "num_inference_steps": 2, "max_sequence_length": 32}


def job(prompt="a white background", seed=0, call=None, **more):
    return {"model": {"path": "tiny"}, "call": {**CALL, "prompt": prompt, "seed": seed, **(call or {})}, **more}


def test_jobs_of_other_prompts_and_seeds_can_be_joined():
    assert can_join(job(), job("a gray background", 7))


@pytest.mark.parametrize(
    "other",
    [
        job(call={"num_inference_steps": 3}),
        job(call={"num_images_per_prompt": 2}),
        job(call={"prompt": ["a", "b"]}),
        job(seed=[1, 2]),
        job(conditions=[ENTITIES]),
        job(loras=[{"path": "tiny"}]),
        job(memory={"cache": {"name": "tea", "threshold": 0.2}}),
        job(pipeline="FluxEliGenPipeline"),
    ],
)
def test_others_are_drawn_alone(other):
    assert not can_join(job(), other)


def test_a_cache_decides_for_a_whole_call():
    cached = job(memory={"cache": {"name": "tea", "threshold": 0.2}})
    assert not can_join(cached, cached)


def test_each_image_is_that_of_its_job_within_the_tolerance():
    jobs = [job("a white background", 3, conditions=[ENTITIES]), job("a gray background", 4, conditions=[ENTITIES])]
    runner = JobRunner(device="cpu")
    together = runner.run(joined(jobs))
    assert together.seeds == [3, 4]
    for each, image in zip(jobs, together.images):
        alone = runner.run(read_job(each)).images[0]
        assert np.abs(np.asarray(image, int) - np.asarray(alone, int)).max() <= 1
