"""Short trainings of the recipes in examples/training on the tiny model, and their held-out losses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.training import Draws
from diffusers_flux_ext.training.batch import TrainingSample
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.run.build import Run, build_run
from diffusers_flux_ext.training.run.model import load_pipeline
from diffusers_flux_ext.training.run.samples import make_samples, open_data, split
from diffusers_flux_ext.training.run.templates import make_templates
from diffusers_flux_ext.training.run.validation import ValidationLoss


SEEDS = (0, 1, 2)
RECIPES = Path(__file__).parents[3] / "examples" / "training"
HELD_OUT = 20
SIGMAS = (0.4, 0.7, 0.9)


@dataclass(frozen=True)
class Short:
    """A short run of a recipe, before it trains.

    Args:
        run (`Run`): The run.
        loss (`ValidationLoss`): The loss of the samples that it does not train on.
    """

    run: Run
    loss: ValidationLoss

    def losses(self, samples: Sequence[TrainingSample] | None = None) -> torch.Tensor:
        """The mean loss of each held-out sample, or of others."""
        loss = self.loss if samples is None else replace(self.loss, samples=samples)
        # A run that has ended leaves the model with its own attention, which knows no image prompts.
        with regional_attention(loss.training.transformer):
            return loss.losses().mean(dim=1)

    def shuffled(self) -> list[TrainingSample]:
        """The held-out samples, each with the conditions of the next one."""
        kept = list(self.loss.samples)
        return [
            replace(one, conditions=other.conditions) for one, other in zip(kept, kept[1:] + kept[:1], strict=True)
        ]


def prepare(recipe: str, folder: Path, tables: Sequence[Path], updates: int, *changes: str) -> Short:
    """Build a run of a recipe on other data, of other length."""
    paths = [f"data.sources.{number}.path={table}" for number, table in enumerate(tables)]
    config = read_config(
        RECIPES / f"{recipe}.yaml",
        [
            *paths, f"output={folder / 'run'}", f"data.cache={folder / 'cache'}", f"data.held_out={HELD_OUT}",
            "data.captions.dropout=0", "run.average=null", f"run.updates={updates}", "run.batch_size=8", *changes,
        ],
    )  # fmt: skip
    run = build_run(config)
    assert run is not None
    data, _ = open_data(config, Draws(config.seed))
    pipe = load_pipeline(config.model)
    templates, _ = make_templates(config.conditions, pipe.transformer, config.seed, torch.float32)
    # They are encoded by now, so they are read from the cache.
    samples = make_samples(config, data, pipe, templates)
    _, held = split(samples, config.data, Draws(config.seed))
    kept = [samples.sample(index) for index in held]
    return Short(run, ValidationLoss(run.training, kept, run.trainer.make_batch, sigmas=SIGMAS))


@dataclass(frozen=True)
class Losses:
    """Held-out losses before and after the short runs of all seeds, one number per sample and run.

    Args:
        before (`torch.Tensor`): Before training.
        after (`torch.Tensor`): After it.
        shuffled (`torch.Tensor`): After it, each sample with the conditions of the next one.
    """

    before: torch.Tensor
    after: torch.Tensor
    shuffled: torch.Tensor


def train_all_seeds(recipe: str, folder: Path, tables: Sequence[Path], updates: int, *changes: str) -> Losses:
    """Train a recipe for each seed, which share a cache, and return the losses before and after."""
    rows = []
    for seed in SEEDS:
        short = prepare(recipe, folder, tables, updates, f"seed={seed}", f"output={folder / str(seed)}", *changes)
        before = short.losses()
        short.run()
        rows.append((before, short.losses(), short.losses(short.shuffled())))
    return Losses(*(torch.cat(each) for each in zip(*rows, strict=True)))


def falls(before: torch.Tensor, after: torch.Tensor) -> float:
    """How many standard errors the loss fell by, over paired samples."""
    fall = before - after
    return float(fall.mean() / (fall.std() / len(fall) ** 0.5))
