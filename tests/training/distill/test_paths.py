"""The teacher's path, and what a student makes of it: exact for every condition, and a gradient through all steps."""

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import Draws, FluxTraining, TrainingSample, stack_conditions
from diffusers_flux_ext.training.assemble import Place
from diffusers_flux_ext.training.batch import TeacherPath
from diffusers_flux_ext.training.data import Visit, stack_samples
from diffusers_flux_ext.training.distill import (
    DistillationBatchMaker,
    StudentLevels,
    Teacher,
    TeacherOptions,
    states_at,
)
from diffusers_flux_ext.training.distill.batches import straight_way
from diffusers_flux_ext.training.drawing import drawing_pipeline
from diffusers_flux_ext.training.sampler import sample_through
from tests.training.samples import CANVAS, bare, batch, encode


TRAINED = tuple(name for name in METHODS if name != "inpaint")


def sample(encoded=()):
    generator = torch.Generator().manual_seed(5)
    prompts = {
        text: (torch.randn(1, 16, 40, generator=generator), torch.randn(1, 24, generator=generator))
        for text in ("a cat", "")
    }
    latents = torch.randn(1, CANVAS.num_tokens, 64, generator=generator)
    return TrainingSample(0, CANVAS.height, CANVAS.width, latents, prompts, tuple(encoded))


def taught(names, steps, student, scale=1.0):
    """A sample with the path of a teacher with some conditions, and the module of the student."""
    pipe, conditions = pipeline_for(*names), [bare(name) for name in names]
    drawing = drawing_pipeline(pipe.transformer, pipe.vae, pipe.scheduler)
    made = sample(encode(*names) if names else ())
    options = TeacherOptions(steps, 2.5, scale)
    teacher = Teacher(drawing, conditions, options, StudentLevels(pipe.scheduler, 16, student), made.prompts[""])
    path = teacher.path(made, "a cat", Draws(1).normal("noise", shape=made.latents.shape))
    return TrainingSample(**{**vars(made), "path": path}), FluxTraining(pipe.transformer, conditions)


def made_batch(given, training, method, levels=0.0):
    maker = DistillationBatchMaker(
        Draws(2), lambda draws, update, positions, total, tokens: torch.full((len(positions),), levels),
        torch.float32, 2.5, method=method,
    )  # fmt: skip
    stacked = stack_samples([given], (Visit(0, 0),), ["a cat"], training.conditions)
    return maker(stacked, Place(0, [0], 1))


@pytest.mark.parametrize("name", [None, *TRAINED])
def test_a_student_that_is_the_teacher_has_no_loss(name):
    given, training = taught([] if name is None else [name], 2, 2)
    with training, torch.no_grad():
        assert training(made_batch(given, training, "end_to_end")) < 1e-9
        # Flex' control ends after half of the steps, so its steps are not trained one by one.
        for levels in () if name == "flex" else (0.1, 0.6):
            assert training(made_batch(given, training, "per_step", levels)) < 1e-7
            assert training(made_batch(sample_elsewhere(given), training, "per_step", levels)) > 1e-4


def sample_elsewhere(given):
    states = given.path.states.clone()
    states[:, 1] += 0.1
    return TrainingSample(**{**vars(given), "path": TeacherPath(states, given.path.sigmas)})


def test_guidance_and_more_steps_make_a_loss():
    for steps, scale in ((4, 1.0), (2, 3.0)):
        given, training = taught(["entities"], steps, 2, scale)
        assert given.path.states.shape == (1, 3, CANVAS.num_tokens, 64)
        with training, torch.no_grad():
            assert training(made_batch(given, training, "end_to_end")) > 1e-5


def test_the_path_ends_where_the_pipeline_ends():
    pipe = pipeline_for("entities")
    drawing, made = drawing_pipeline(pipe.transformer, pipe.vae, pipe.scheduler), sample(encode("entities"))
    noise = Draws(1).normal("noise", shape=made.latents.shape)
    levels = StudentLevels(pipe.scheduler, 16, 2)
    teacher = Teacher(drawing, [bare("entities")], TeacherOptions(3, 2.5, 2.0), levels, made.prompts[""])
    (hidden_states, pooled), (no_states, no_pooled) = made.prompts["a cat"], made.prompts[""]
    expected = pipe(
        prompt_embeds=hidden_states, pooled_prompt_embeds=pooled, negative_prompt_embeds=no_states,
        negative_pooled_prompt_embeds=no_pooled, true_cfg_scale=2.0, guidance_scale=2.5, num_inference_steps=3,
        height=CANVAS.height, width=CANVAS.width, latents=noise, output_type="latent", max_sequence_length=16,
        conditions=[CASES["entities"].build()],
    ).images  # fmt: skip
    path = teacher.path(made, "a cat", noise)
    torch.testing.assert_close(path.states[:, -1], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(path.states[:, 0], noise)


def test_states_between_the_steps_lie_on_straight_lines():
    sigmas, states = torch.tensor([1.0, 0.75, 0.5, 0.0]), torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = states_at(sigmas, states, torch.tensor([1.0, 0.625, 0.5 + 1e-7, 0.25, 0.0]))
    assert found.flatten().tolist() == [0.0, 2.0, 3.0, 5.0, 7.0]


def test_a_straight_way_passes_both_states():
    path = TeacherPath(torch.randn(2, 3, 4, 5), torch.tensor([1.0, 0.6, 0.0]))
    way = straight_way(path, torch.tensor([0, 1]))
    for index, step in enumerate((0, 1)):
        for at in (step, step + 1):
            level = path.sigmas[at]
            mixed = (1 - level) * way.latents[index] + level * way.noise[index]
            torch.testing.assert_close(mixed, path.states[index, at])
    assert way.sigma.tolist() == pytest.approx([1.0, 0.6])


def kept_bytes(work):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.nbytes) or tensor, lambda each: each
    ):
        work()
    return sum(kept)


def test_the_gradient_is_that_of_the_plain_loop_and_steps_keep_only_latents():
    transformer = tiny_transformer(0).requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = [each for each in transformer.parameters() if each.requires_grad]
    schedule = torch.tensor([1.0, 0.7, 0.4, 0.0])
    given = batch([], schedule=schedule, sigma=torch.ones(1))
    with FluxTraining(transformer) as training:
        loss = training(given).sum()
        gradients = torch.autograd.grad(loss, weights)
        latents = given.noise
        for level, following in pairwise(schedule):
            step = training._at(given, training._prompt(given), level.expand(1), latents)
            latents = latents + (following - level) * training._predict(step, given)
        expected = torch.autograd.grad((latents - given.latents).pow(2).mean(), weights)
        one, three = (
            kept_bytes(lambda levels=levels: sample_through(given.noise, levels, lambda z, s, i: training._predict(
                training._at(given, training._prompt(given), s, z), given)))
            for levels in (schedule[:2], schedule)
        )  # fmt: skip
        one_step = kept_bytes(lambda: training._predict(
            training._at(given, training._prompt(given), torch.ones(1), given.noise), given))  # fmt: skip
    for gradient, other in zip(gradients, expected):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    assert three - one <= 4 * given.noise.nbytes + 1024
    assert one_step > 20 * given.noise.nbytes


def test_what_a_sampler_cannot_be_compared_with_is_refused():
    given = batch([], schedule=torch.tensor([1.0, 0.0]), preserved=torch.tensor([True]))
    with FluxTraining(tiny_transformer(0)) as training, pytest.raises(ValueError, match="has a `schedule`.*preserved"):
        training(given)
    with FluxTraining(tiny_transformer(0)) as training, pytest.raises(ValueError, match="Wrap them in `DistilledSam"):
        made_batch(sample(), training, "per_step")


def test_several_samples_are_compared_one_by_one():
    given, training = taught(["entities"], 3, 2)
    with training, torch.no_grad():
        alone = made_batch(given, training, "end_to_end")
        encoded = stack_conditions(training.conditions, [given.conditions] * 2)
        doubled = {
            name: torch.cat([getattr(alone, name)] * 2)
            for name in ("latents", "noise", "sigma", "prompt_embeds", "pooled_prompt_embeds", "guidance")
        }
        both = training(batch(list(encoded), **doubled, schedule=alone.schedule))
        torch.testing.assert_close(both, training(alone).expand(2), rtol=1e-4, atol=1e-6)
