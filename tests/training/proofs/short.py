"""Short trainings of the recipes in examples/training on the tiny model, and their held-out losses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusers_flux_ext.training import Draws
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run.build import Run, build_run
from diffusers_flux_ext.training.run.model import load_pipeline
from diffusers_flux_ext.training.run.samples import make_samples, open_data, split
from diffusers_flux_ext.training.run.templates import make_templates
from diffusers_flux_ext.training.run.validation import ValidationLoss


RECIPES = Path(__file__).parents[3] / "examples" / "training"
HELD_OUT = 20
SIGMAS = (0.4, 0.7, 0.9)


def write_world(folder: Path, count: int, seed: int, shapes: Sequence[str], style: str, brightness: object) -> Path:
    """Write images of one object each, whose captions do not name the style."""
    write_example_data(folder, 3 * count, seed, shapes, (style,), brightness)
    rows = [
        row for row in json.loads((folder / "metadata.json").read_text()) if len(row["eligen_entity_prompts"]) == 1
    ]
    for row in rows:
        row["prompt"] = row["prompt"].replace(f"{style} ", "")
    table = folder / "train.json"
    table.write_text(json.dumps(rows))
    return table


@dataclass(frozen=True)
class Short:
    """A short run of a recipe, before it trains.

    Args:
        run (`Run`): The run.
        loss (`ValidationLoss`): The loss of the samples that it does not train on.
    """

    run: Run
    loss: ValidationLoss

    def losses(self, samples: Sequence[object] | None = None) -> torch.Tensor:
        """The mean loss of each held-out sample, or of others."""
        loss = self.loss if samples is None else replace(self.loss, samples=samples)
        return loss.losses().mean(dim=1)

    def shuffled(self) -> list[object]:
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


def falls(before: torch.Tensor, after: torch.Tensor) -> float:
    """How many standard errors the loss fell by, over paired samples."""
    fall = before - after
    return float(fall.mean() / (fall.std() / len(fall) ** 0.5))
