"""One training step of the reference and of ours on the same weights, inputs, noise and noise level."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch

from benchmarks.support.parity.combinations import PROMPTS, Combination
from benchmarks.support.parity.sides import sides
from benchmarks.support.reference.dit import reference_dit_weights
from diffusers_flux_ext.canvas import Canvas, pack_latents
from diffusers_flux_ext.training import FluxTraining, TrainingBatch, condition_modules


class _Reached(Exception):
    """The reference's loop has come to the model."""


def without_windows(call: Combination) -> Combination:
    """The same combination with conditions that act at every noise level."""
    for net in call.theirs.get("controlnet_inputs", ()):
        net.start, net.end = 1.0, 0.0
    if call.base == "flex":
        call.theirs["flex_control_stop"] = 1.0
    windows = {"start": 0.0, "end": 1.0, "control_stop": 1.0}
    call.conditions = [
        replace(condition, **{each.name: windows[each.name] for each in fields(condition) if each.name in windows})
        for condition in call.conditions
    ]
    return call


def _draws(call: Combination, step: int = 0) -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(1000 * call.seed + step)
    width, height = call.size
    clean, noise = torch.randn(2, 1, 16, height // 8, width // 8, generator=generator)
    return clean, noise, float(torch.rand((), generator=generator)) * 0.8 + 0.1


@contextmanager
def _trainable(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Asks for gradients of all parameters, and leaves none behind."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, wanted in zip(parameters, before):
            parameter.requires_grad_(wanted)
            parameter.grad = None


def _gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.named_parameters()
    }


@contextmanager
def reference_inputs(call: Combination) -> Iterator[dict[str, Any]]:
    """What the reference's loop gives to its model at the first step."""
    reference, inputs = sides(call.base).reference, {}

    def reach(**given: Any) -> torch.Tensor:
        inputs.update(given)
        raise _Reached

    stubs = {**call.stubs, "model_fn": reach}
    replaced = {name: getattr(reference, name) for name in stubs}
    for name, stub in stubs.items():
        setattr(reference, name, stub)
    try:
        reference(
            PROMPTS[0], width=call.size[0], height=call.size[1], seed=0, num_inference_steps=2, progress_bar_cmd=list,
            **call.theirs,
        )  # fmt: skip
    except _Reached:
        pass
    finally:
        for name, former in replaced.items():
            setattr(reference, name, former)
    yield inputs


def reference_loss(call: Combination, inputs: dict[str, Any], step: int = 0) -> torch.Tensor:
    """The reference's unweighted loss at a step's noise level."""
    clean, noise, sigma = (_like(each, inputs["latents"]) for each in _draws(call, step))
    given = {**inputs, "latents": (1 - sigma) * clean + sigma * noise, "timestep": sigma.reshape(1) * 1000}
    return torch.nn.functional.mse_loss(sides(call.base).reference.model_fn(**given), noise - clean)


def _like(value: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value, dtype=like.dtype)


def reference_step(call: Combination) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The reference's unweighted loss and the gradients of its DiT, by its own names."""
    dit = sides(call.base).reference.dit
    with reference_inputs(call) as inputs, _trainable([dit]):
        loss = reference_loss(call, inputs)
        loss.backward()
        return loss.detach(), _gradients(dit)


def our_batch(call: Combination) -> TrainingBatch:
    """The same sample, encoded by our conditions."""
    pipe = sides(call.base).ours
    width, height = call.size
    length = call.ours["max_sequence_length"]
    pipe._guidance_scale = guidance = call.ours["guidance_scale"]
    canvas = Canvas(height, width, 1, 1, torch.device("cpu"), torch.float32, max_sequence_length=length)
    with torch.no_grad():
        encoded = [dict(condition.encode(pipe, canvas)) for condition in call.conditions]
        prompt_embeds, pooled, _ = pipe.encode_prompt(PROMPTS[0], None, max_sequence_length=length)
    rows, columns = canvas.grid
    batch = TrainingBatch(
        latents=prompt_embeds,
        noise=prompt_embeds,
        sigma=torch.zeros(1),
        latent_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns))),
        prompt_embeds=prompt_embeds,
        pooled_prompt_embeds=pooled,
        guidance=torch.tensor([guidance]) if pipe.transformer.config.guidance_embeds else None,
        conditions=encoded,
    )
    return at_step(call, batch, 0)


def at_step(call: Combination, batch: TrainingBatch, step: int) -> TrainingBatch:
    """The batch with a step's latents, noise and noise level."""
    clean, noise, sigma = (_like(each, batch.prompt_embeds) for each in _draws(call, step))
    return replace(batch, latents=pack_latents(clean), noise=pack_latents(noise), sigma=sigma.reshape(1))


def our_step(call: Combination) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Our loss and the gradients of the transformer, under the reference's names."""
    transformer, batch = sides(call.base).ours.transformer, our_batch(call)
    modules = list(condition_modules(call.conditions).values())
    with _trainable([transformer, *modules]), FluxTraining(transformer, call.conditions) as training:
        loss = training(batch).mean()
        loss.backward()
        gradients = copy.deepcopy(transformer)
        gradients.load_state_dict(_gradients(transformer))
    return loss.detach(), reference_dit_weights(gradients)


@contextmanager
def in_float64(modules: list[torch.nn.Module]) -> Iterator[None]:
    """Holds modules in float64, and restores their float32 weights."""
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    for module in modules:
        module.double()
    try:
        yield
    finally:
        for module, weights in zip(modules, before):
            module.float().load_state_dict(weights)


def wide(value: Any) -> Any:
    """The same with tensors of floats in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: wide(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(wide(each) for each in value)
    return value


def reference_change(call: Combination, optimizer: Any, steps: int) -> dict[str, torch.Tensor]:
    """How the reference's DiT changes in some steps, by its own names."""
    reference = sides(call.base).reference
    modules = [each for each in (reference.dit, reference.controlnet, reference.step1x_connector) if each is not None]
    with reference_inputs(call) as inputs, in_float64(modules), _trainable([reference.dit]):
        before = {name: value.detach().clone() for name, value in reference.dit.named_parameters()}
        inputs, trained = wide(inputs), optimizer(reference.dit.parameters())
        for step in range(steps):
            reference_loss(call, inputs, step).backward()
            trained.step()
            trained.zero_grad()
        return {name: value.detach() - before[name] for name, value in reference.dit.named_parameters()}


def our_change(call: Combination, optimizer: Any, steps: int) -> dict[str, torch.Tensor]:
    """How our transformer changes, by the reference's names."""
    transformer, batch = sides(call.base).ours.transformer, our_batch(call)
    modules = [transformer, *condition_modules(call.conditions).values()]
    with in_float64(modules), _trainable([transformer]), FluxTraining(transformer, call.conditions) as training:
        before = reference_dit_weights(transformer)
        before = {name: value.detach().clone() for name, value in before.items()}
        batch, trained = TrainingBatch(**wide(vars(batch))), optimizer(transformer.parameters())
        for step in range(steps):
            training(at_step(call, batch, step)).mean().backward()
            trained.step()
            trained.zero_grad()
        return {name: value.detach() - before[name] for name, value in reference_dit_weights(transformer).items()}
