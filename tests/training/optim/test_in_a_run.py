"""Levels, weights, errors, schedules, averages and rounding in a run of the trainer, which resumes bit for bit."""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import Draws, ExponentialMovingAverage, FluxTraining, TrainingSample
from diffusers_flux_ext.training.assemble import BatchMaker, Place
from diffusers_flux_ext.training.checkpoint import CheckpointFolder
from diffusers_flux_ext.training.data import Visit, stack_samples
from diffusers_flux_ext.training.losses import draw_levels, errors, levels, weighting
from diffusers_flux_ext.training.optim import OptimizerSettings, build_optimizer, schedule
from diffusers_flux_ext.training.run.trainer import RunSettings, Trainer
from diffusers_flux_ext.training.trained.protocol import load_into, state_of


UPDATES, SAMPLES = 4, 2


class Updates:
    def batches(self, update: int):
        generator = torch.Generator().manual_seed(update)
        prompts = {"": (torch.randn(1, 4, 40, generator=generator), torch.randn(1, 24, generator=generator))}
        latents = torch.randn(1, 4, 64, generator=generator)
        samples = [TrainingSample(0, 32, 32, latents, prompts)] * SAMPLES
        visits, texts = (Visit(0, 0),) * SAMPLES, [""] * SAMPLES
        yield stack_samples(samples, visits, texts, ()), Place(update, range(SAMPLES), SAMPLES)


class Adapter:
    def __init__(self, transformer: torch.nn.Module) -> None:
        named = transformer.named_parameters()
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.parameters

    def state(self) -> dict[str, torch.Tensor]:
        return state_of(self.parameters)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        load_into(self.parameters, state)


def trainer(folder: Path, rounding: str | None, updates: int = UPDATES) -> Trainer:
    transformer = tiny_transformer(0).requires_grad_(False)
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian"))
    if rounding is not None:
        transformer.bfloat16()
    drawn = levels("logit_normal", shift="resolution")
    training = FluxTraining(
        transformer, errors=errors("huber", schedule="snr"), weighting=weighting("min_snr", levels=drawn)
    )
    trained = Adapter(transformer)
    settings = OptimizerSettings(lr=1e-2, lora_plus=4.0, rounding=rounding)
    rate = schedule("cosine", warmup=1)
    return Trainer(
        training,
        trained,
        build_optimizer(trained.named_parameters(), settings),
        Updates(),
        BatchMaker(Draws(1), partial(draw_levels, drawn), transformer.dtype),
        RunSettings(updates, save_every=2),
        CheckpointFolder(folder),
        {"rounding": rounding},
        schedule=lambda update: rate(update, UPDATES),
        average=ExponentialMovingAverage(trained.named_parameters(), decay=0.9),
    )


@pytest.mark.parametrize("rounding", [None, "stochastic", "kahan", "masters"])
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, rounding: str | None) -> None:
    whole = trainer(tmp_path / "whole", rounding)
    start = {name: value.detach().clone() for name, value in whole.trained.named_parameters().items()}
    assert whole.run()
    trainer(tmp_path / "parts", rounding, updates=2).run()
    resumed = trainer(tmp_path / "parts", rounding)
    assert resumed.resume()
    assert resumed.step == 2
    assert resumed.run()
    averages = resumed.average.state()
    for name, value in whole.trained.named_parameters().items():
        assert torch.equal(value, resumed.trained.named_parameters()[name])
        assert torch.equal(whole.average.state()[name], averages[name])
        assert averages[name].dtype == torch.float32
        assert not torch.equal(value, start[name])
