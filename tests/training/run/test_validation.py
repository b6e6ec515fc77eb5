"""Validation at fixed noise, and images through the pipeline."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from benchmarks.support.conditions import CASES, pipeline_for
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs
from diffusers_flux_ext.training import Draws, FluxTraining
from diffusers_flux_ext.training.assemble import BatchMaker
from diffusers_flux_ext.training.run.validation import ValidationImages, ValidationLoss, sheet
from tests.training.run.test_trainer import sample, uniform_levels
from tests.training.samples import bare, encode


def loss(samples, seed=0):
    conditions = [bare("entities")]
    make = BatchMaker(Draws(1), uniform_levels, torch.float32, condition_dropout=[0.9])
    with FluxTraining(pipeline_for("entities").transformer, conditions) as training:
        return ValidationLoss(training, samples, make, seed).losses()


def test_the_loss_depends_on_the_weights_alone():
    samples = [sample(index, encode("entities")) for index in (3, 5)]
    first = loss(samples)
    assert first.shape == (2, 7)
    assert torch.equal(first[1:], loss(samples[1:]))
    assert torch.equal(first, loss([replace(each, weight=5.0, preserved=True) for each in samples]))
    assert not torch.equal(first, loss(samples, seed=1))
    conditions = [bare("entities")]
    with FluxTraining(pipeline_for("entities").transformer, conditions) as training:
        make = BatchMaker(Draws(1), uniform_levels, torch.float32)
        values = ValidationLoss(training, samples, make)(10)
    assert values["validation/loss"] == pytest.approx(float(first.mean()))
    assert values["validation/sigma_0.125"] == pytest.approx(float(first[:, 0].mean()))


@pytest.mark.parametrize("name", ["entities", "controlnet", "redux"])
def test_images_are_those_of_the_pipeline(tmp_path, name):
    pipe = pipeline_for(name)
    pipe._guidance_scale = 3.5
    prompt_embeds, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=16)
    given = replace(sample(0, encode(name)), prompts={"": (prompt_embeds, pooled)})
    with FluxTraining(pipe.transformer, [bare(name)]) as training:
        training.train()
        images = ValidationImages(
            training,
            pipe.vae,
            pipe.scheduler,
            [given, given],
            tmp_path / "images",
            ["a", "b"],
            4,
            num_inference_steps=2,
        )
        drawn = images.images()
        (path,) = images(7)
        assert training.training
    ordinary = FluxConditionedPipeline.from_pipe(pipe)(
        **call_kwargs(
            prompt=None, prompt_embeds=prompt_embeds, pooled_prompt_embeds=pooled, max_sequence_length=16,
            generator=torch.Generator().manual_seed(4), num_inference_steps=2, output_type="pil", guidance_scale=3.5,
            conditions=[CASES[name].build()],
        )
    ).images[0]  # fmt: skip
    assert drawn[0].tobytes() == ordinary.tobytes()
    assert drawn[1].tobytes() != drawn[0].tobytes()
    assert path.name == "step-00000007.png"
    assert Image.open(path).size == sheet(drawn, ["a", "b"]).size
