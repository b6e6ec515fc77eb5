"""The loop over updates: splitting, resuming, stopping, and numbers that are not finite."""

import csv
import json
import signal
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import Draws, FluxTraining, TrainingSample
from diffusers_flux_ext.training.assemble import BatchMaker, Place
from diffusers_flux_ext.training.checkpoint import CheckpointFolder
from diffusers_flux_ext.training.data import Visit, stack_samples
from diffusers_flux_ext.training.run.monitor import CSVWriter, JSONLinesWriter, Monitor, by_level
from diffusers_flux_ext.training.run.trainer import ConfigurationChangedError, RunSettings, Trainer
from diffusers_flux_ext.training.trained.protocol import load_into, state_of
from tests.training.samples import CANVAS, bare, encode


TOTAL = 4


def sample(index: int, conditions=()) -> TrainingSample:
    generator = torch.Generator().manual_seed(index)
    prompts = {
        text: (torch.randn(1, 8, 40, generator=generator), torch.randn(1, 24, generator=generator))
        for text in ("a cat", "one cat", "")
    }
    latents = torch.randn(1, CANVAS.num_tokens, 64, generator=generator)
    return TrainingSample(index, CANVAS.height, CANVAS.width, latents, prompts, conditions)


class Numbered:
    """Updates of four samples, in micro-batches of `size`."""

    def __init__(self, size: int = TOTAL, conditions=(), encoded=()):
        self.size, self.conditions, self.encoded = size, conditions, encoded

    def batches(self, update):
        for start in range(0, TOTAL, self.size):
            positions = range(start, start + self.size)
            samples = [sample(update * TOTAL + each, self.encoded) for each in positions]
            visits, texts = tuple(Visit(each.index, 0) for each in samples), ["a cat", "one cat", "", "a cat"]
            yield stack_samples(samples, visits, texts[start:], self.conditions), Place(update, positions, TOTAL)


class Adapter:
    def __init__(self, transformer):
        self.transformer = transformer

    def named_parameters(self):
        return {name: value for name, value in self.transformer.named_parameters() if value.requires_grad}

    def state(self):
        return state_of(self.named_parameters())

    def load(self, state):
        load_into(self.named_parameters(), state)


def uniform_levels(draws, update, positions, total, tokens):
    return torch.stack([draws.uniform("level", update, each) for each in positions]).float()


def trainer(folder, updates=Numbered(), count=6, rate=1e-2, conditions=(), configuration=None, **options):
    transformer = tiny_transformer(0).requires_grad_(False)
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    training = FluxTraining(transformer, conditions)
    trained = Adapter(transformer)
    optimizer = torch.optim.AdamW(trained.named_parameters().values(), lr=rate)
    make = BatchMaker(Draws(3), uniform_levels, torch.float32, condition_dropout=[0.3] * len(conditions))
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=9)
    given = {
        "settings": RunSettings(count, save_every=2),
        "checkpoints": checkpoints,
        "configuration": configuration or {"rate": rate},
    }
    return Trainer(training, trained, [optimizer], updates, make, **{**given, **options})


def weights(run):
    return {name: value.detach().clone() for name, value in run.trained.named_parameters().items()}


def curve(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def logged(folder, start=0):
    return Monitor([JSONLinesWriter(folder / "log.jsonl", start), CSVWriter(folder / "log.csv", start)], every=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(folder, monitor=logged(folder))
    assert run.run()
    return folder, weights(run)


def test_the_loss_falls(tmp_path):
    class Same(Numbered):
        def batches(self, update):
            return super().batches(0)

    run = trainer(tmp_path, Same(), count=12, monitor=logged(tmp_path))
    run.make_batch = lambda samples, place: BatchMaker(Draws(3), uniform_levels, torch.float32)(
        samples, Place(0, place.positions, TOTAL)
    )
    run.run()
    losses = curve(tmp_path)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_same_updates(whole, tmp_path, size):
    run = trainer(tmp_path, Numbered(size), monitor=logged(tmp_path))
    run.run()
    for name, value in weights(run).items():
        torch.testing.assert_close(value, whole[1][name], rtol=1e-4, atol=1e-6)
    assert curve(tmp_path) == pytest.approx(curve(whole[0]), rel=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(whole, tmp_path, stop):
    class Stopping(Numbered):
        def batches(self, update):
            if update == stop:
                raise KeyboardInterrupt
            return super().batches(update)

    first = trainer(tmp_path, Stopping(), monitor=logged(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer(tmp_path)
    assert second.resume() == (stop >= 2)
    second.monitor.writers = logged(tmp_path, second.step).writers
    second.monitor.every = 1
    assert second.step == stop // 2 * 2
    assert second.run()
    assert all(torch.equal(value, whole[1][name]) for name, value in weights(second).items())
    assert curve(tmp_path) == curve(whole[0])
    with open(tmp_path / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 7))


def test_sigterm_finishes_the_step_and_saves(whole, tmp_path):
    class Terminated(Numbered):
        def batches(self, update):
            if update == 2:
                signal.raise_signal(signal.SIGTERM)
            return super().batches(update)

    run = trainer(tmp_path, Terminated())
    assert not run.run()
    assert run.checkpoints.load().step == 3
    resumed = trainer(tmp_path)
    assert resumed.resume()
    assert resumed.run()
    assert all(torch.equal(value, whole[1][name]) for name, value in weights(resumed).items())


def test_another_configuration_is_refused_by_name(tmp_path):
    trainer(tmp_path, count=2, configuration={"optimizer": {"rate": 1e-2}, "seed": 3}).run()
    other = trainer(tmp_path, configuration={"optimizer": {"rate": 2e-2}, "seed": 3})
    with pytest.raises(ConfigurationChangedError, match=r"`optimizer\.rate` 0\.01 \(now 0\.02\)"):
        other.resume()


def test_other_parameters_are_refused(tmp_path):
    trainer(tmp_path, count=2).run()
    other = trainer(tmp_path)
    other.trained.named_parameters = lambda: {"x": torch.nn.Parameter(torch.zeros(1))}
    with pytest.raises(ValueError, match="belongs to other parameters"):
        other.resume()


def test_updates_that_are_not_finite_are_skipped_and_kept(tmp_path):
    class Broken(Numbered):
        def batches(self, update):
            for samples, place in super().batches(update):
                if update in (1, 2):
                    samples.latents[0] = float("nan")
                yield samples, place

    run = trainer(tmp_path, Broken(), count=4)
    run.run()
    assert run.skipped == 2
    assert all(value.isfinite().all() for value in weights(run).values())
    assert len(list((tmp_path / "bad_updates").iterdir())) == 2
    run = trainer(tmp_path / "other", Broken(), count=4, settings=RunSettings(4, stop_after_bad=1))
    with pytest.raises(FloatingPointError, match="2 updates in a row"):
        run.run()


def test_steps_within_the_backward_pass_are_the_same(tmp_path):
    settings = RunSettings(4, clip=None, save_every=2)
    plain, fused = (
        trainer(tmp_path / str(each), count=4, settings=replace(settings, fused=each)) for each in (False, True)
    )
    assert plain.run()
    assert fused.run()
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(fused).items())
    with pytest.raises(ValueError, match="`max_grad_norm` to None"):
        trainer(tmp_path / "clipped", settings=RunSettings(4, fused=True))


def test_conditions_are_dropped_alike_however_the_update_is_split(tmp_path):
    conditions, encoded = [bare("entities")], encode("entities")
    runs = [
        trainer(tmp_path / str(size), Numbered(size, conditions, encoded), 2, conditions=conditions) for size in (1, 4)
    ]
    for run in runs:
        run.run()
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(value, weights(runs[1])[name], rtol=1e-3, atol=1e-5)


def test_losses_by_noise_level():
    values = by_level(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.05, 0.01, 1.0]))
    assert values["loss/sigma_0.0-0.1"] == 2.0
    assert values["loss/sigma_0.9-1.0"] == 5.0
    assert len(values) == 10
