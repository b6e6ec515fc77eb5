"""Whatever a condition carries that is trained runs after `encode`, whose results are cached without gradients."""

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from diffusers_flux_ext import Canvas, EncodedConditions, FluxCondition, predict_velocity, regional_attention
from diffusers_flux_ext.denoise import DenoisingStep, PromptEmbeds
from diffusers_flux_ext.methods.method import resolve
from diffusers_flux_ext.testing import randomise, seeded
from diffusers_flux_ext.training.trained import TrainedModule, mark_trainable, trainable_modules
from diffusers_flux_ext.training.trained.scratch import find_record


# Fields with models that run in `encode`; they are frozen.
ENCODERS = {"image_encoder", "mllm", "face_encoder"}

# Beginnings of parameters that the velocity does not depend on.
UNUSED = {
    # The text of the last double block, which nothing reads where no single blocks follow.
    "controlnet inpaint": "transformer_blocks.1.",
    # The attribute has no value in this case.
    "attributes": "encoders.1.",
}


def modules_of(condition: FluxCondition) -> dict[str, torch.nn.Module]:
    """The modules of a condition that a method declares as trained, by field."""
    found = {part.name: getattr(condition, part.name) for part in fields(condition)}
    return {name: value for name, value in found.items() if isinstance(value, torch.nn.Module) and find_record(value)}


def carriers() -> list[tuple[str, str | None]]:
    """Cases, and changes of them, that carry trained modules; those of other classes than the case's among them."""
    found: list[tuple[str, str | None]] = []
    for name in METHODS:
        kinds = []
        for change in (None, *CASES[name].changes):
            kind = [type(module) for module in modules_of(CASES[name].build(change)).values()]
            if kind and kind not in kinds:
                kinds.append(kind)
                found.append((name, change))
    return found


CARRIERS = carriers()


def step_of(pipe: Any) -> DenoisingStep:
    generator, config = seeded(0), pipe.transformer.config
    prompt = PromptEmbeds(
        torch.randn(1, 5, config.joint_attention_dim, generator=generator),
        torch.randn(1, config.pooled_projection_dim, generator=generator),
        torch.zeros(5, 3),
    )
    ids = torch.cartesian_prod(torch.arange(1.0), torch.arange(2.0), torch.arange(3.0))
    latents = torch.randn(1, 6, 64, generator=generator)
    return DenoisingStep(0, 1, "cond", torch.tensor([0.5]), latents, ids, prompt, torch.tensor([1.0]))


def encoded(condition: FluxCondition, pipe: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return condition.encode(pipe, Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32))


def test_each_module_is_carried_by_a_case() -> None:
    carried = {type(m) for name, change in CARRIERS for m in modules_of(CASES[name].build(change)).values()}
    for name, (method, record) in trainable_modules().items():
        # Gates act on LoRAs, without a condition: see `test_modules.py`.
        if name != "lora-fusion":
            assert any(issubclass(kind, resolve(method.package, record.module)) for kind in carried), name


@pytest.mark.parametrize("name", METHODS)
def test_each_module_of_a_condition_is_declared_as_trained_or_is_an_encoder(name: str) -> None:
    condition = CASES[name].build()
    held = {part.name: getattr(condition, part.name) for part in fields(condition)}
    modules = {part for part, value in held.items() if isinstance(value, torch.nn.Module)}
    assert modules - set(modules_of(condition)) <= ENCODERS


@pytest.mark.parametrize("name, change", CARRIERS)
def test_encode_does_not_run_what_is_trained(name: str, change: str | None) -> None:
    pipe, condition = pipeline_for(name), CASES[name].build(change)
    pipe._guidance_scale = 1.0
    first = encoded(condition, pipe)
    changed = copy.copy(condition)
    for part, module in modules_of(condition).items():
        object.__setattr__(changed, part, randomise(copy.deepcopy(module), 77))
    second = encoded(changed, pipe)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not any(value.requires_grad for value in first.values())


@pytest.mark.parametrize("name, change", CARRIERS)
def test_what_is_trained_gets_a_gradient_from_encoded_tensors(name: str, change: str | None) -> None:
    pipe, condition = pipeline_for(name), copy.copy(CASES[name].build(change))
    pipe._guidance_scale = 1.0
    for part, module in modules_of(condition).items():
        # Cases share their modules.
        object.__setattr__(condition, part, copy.deepcopy(module))
    modules = modules_of(condition)
    tensors = encoded(condition, pipe)
    for part, module in modules.items():
        mark_trainable([module], TrainedModule(module, part))
    whole = EncodedConditions.from_tensors([condition], [tensors])
    step = whole.with_prompt(step_of(pipe))
    with regional_attention(pipe.transformer):
        predict_velocity(pipe.transformer, step, whole.contributions(step)).square().mean().backward()
    for part, module in modules.items():
        silent = [key for key, value in module.named_parameters() if value.grad is None or not value.grad.any()]
        unused = UNUSED.get(name)
        assert all(unused and key.startswith(unused) for key in silent), (part, silent)
        assert len(silent) < len(list(module.parameters()))
