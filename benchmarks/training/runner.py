"""What all proofs share: data, training by the command `flux-ext train`, scores, and the file of the result."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from benchmarks.training.drawing import Measured
from benchmarks.training.shipped import lay_out
from benchmarks.training.worlds import write_worlds
from diffusers_flux_ext.checkpoints.writing import written_at_once
from diffusers_flux_ext.cli.main import main as flux_ext
from diffusers_flux_ext.training.config import TrainingConfig, read_config
from diffusers_flux_ext.training.data.cache.keys import digest


RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[2] / "examples" / "training"
ITEMS = 128
TRAINED_BY = "trained_by.txt"
"""Beside a result: the hash of the configuration that it was trained by."""


@dataclass(frozen=True)
class Bound:
    """A measured number and what it should be; it is reached when the whole 95 % interval lies inside.

    Args:
        what (`str`): What was measured.
        measured (`dict[str, float]`): See [`interval`].
        low (`float`): The least that is enough.
        high (`float`): The most that is allowed.
        unit (`str`, defaults to `""`): `"%"` shows a share in percent; anything else is appended.
    """

    what: str
    measured: dict[str, float]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""

    def row(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        bounds = {name: value for name, value in (("min", self.low), ("max", self.high)) if math.isfinite(value)}
        reached = self.low <= self.measured["low"] and self.measured["high"] <= self.high
        return {"what": self.what, **self.measured, "unit": self.unit, "bounds": bounds, "reached": reached}


@dataclass(frozen=True)
class Variant:
    """A training by a recipe with some of its entries changed.

    Args:
        name (`str`): Its name, and that of its folder.
        recipe (`str`): Name of a configuration in `examples/training`.
        changes (`tuple[str, ...]`): Entries, as `flux-ext train` takes them.
    """

    name: str
    recipe: str
    changes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The recipe's file."""
        return RECIPES / f"{self.recipe}.yaml"

    @property
    def entries(self) -> tuple[str, ...]:
        """All changed entries, with the folder's."""
        return (*self.changes, *([f"output=runs/{self.name}"] if self.changes else []))

    @property
    def config(self) -> TrainingConfig:
        """The configuration."""
        return read_config(self.path, self.entries)


@dataclass(frozen=True)
class Proof:
    """A training and how its result is scored.

    Args:
        name (`str`): Name of the result.
        title (`str`): What is trained, in words.
        recipes (`tuple[str | Variant, ...]`): Names of configurations in `examples/training`, or variants of them,
            trained in this order.
        worlds (`tuple[str, ...]`): Data sets.
        score (`Callable`): Maps the folder of each recipe's exported files, what is measured, and the number of items
            to bounds.
        models (`Mapping[str, Callable]`): What writes each folder of a model that the recipes read; `score` gets these
            folders by their names as well.
    """

    name: str
    title: str
    recipes: tuple[str | Variant, ...]
    worlds: tuple[str, ...]
    score: Callable[[dict[str, Path], Measured, int], list[Bound]]
    models: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    def run(self, work: Path, items: int, shipped: bool = False) -> Path:
        """Draw the data, train, score and write the result; go on where it stopped.

        Args:
            work (`Path`): Folder of data, checkpoints and measures.
            items (`int`): Held-out items.
            shipped (`bool`, defaults to `False`): Whether to score the modules that ship instead of training.

        Returns:
            `Path`: the result's file.
        """
        work.mkdir(parents=True, exist_ok=True)
        folders: dict[str, Path] = {}
        trainings, trained_by = [], []
        if not shipped:
            write_worlds(work / "worlds", self.worlds)
        for name, write in self.models.items():
            write(work / name)
            folders[name] = work / name
        for each in self.recipes:
            variant = Variant(each, each) if isinstance(each, str) else each
            folders[variant.name] = lay_out(work, variant.name) if shipped else work / train(work, variant)
            trainings.append(describe_training(work, variant, shipped))
            trained_by.append(variant.config.identity())
        # Measures of another training are not those of this one.
        which = "shipped" if shipped else digest(trained_by)[:8]
        measures = work / "measured" / f"{self.name}-{which}.jsonl"
        with torch.no_grad():
            bounds = self.score(folders, Measured(measures), items)
        result = {
            "name": self.name,
            "title": self.title,
            "shipped": shipped,
            "trainings": trainings,
            "rows": [bound.row() for bound in bounds],
        }
        RESULTS.mkdir(exist_ok=True)
        with written_at_once(RESULTS / f"{self.name}.json") as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return RESULTS / f"{self.name}.json"


def train(work: Path, variant: Variant) -> Path:
    """Run `flux-ext train` in a folder, or go on with it.

    Args:
        work (`Path`): The folder that the recipe's paths begin from.
        variant (`Variant`): What to train.

    Returns:
        `Path`: the folder of the exported files, from `work`.

    Raises:
        SystemExit: if the training failed or was stopped, or the folder has one by another configuration.
    """
    output = work / variant.config.output
    result, asked = Path(variant.config.output) / "result", digest(variant.config.identity())
    if (output / "result").exists():
        before = output / TRAINED_BY
        if not before.is_file() or before.read_text(encoding="utf-8") != asked:
            raise SystemExit(f"`{output}` was trained by another configuration. Remove it to train anew.")
        return result
    with contextlib.chdir(work):
        code = flux_ext(["train", str(variant.path), *variant.entries])
    if not (work / result).exists():
        raise SystemExit(code or 1)
    (output / TRAINED_BY).write_text(asked, encoding="utf-8")
    return result


def describe_training(work: Path, variant: Variant, shipped: bool = False) -> dict[str, Any]:
    """Return the length of a training.

    Args:
        work (`Path`): The folder that the recipe's paths begin from.
        variant (`Variant`): What was trained.
        shipped (`bool`, defaults to `False`): Whether it was another training by the same recipe.

    Returns:
        `dict[str, Any]`
    """
    config = variant.config
    length: dict[str, Any] = {"recipe": variant.path.name, **config.run.model_dump(include={"updates", "batch_size"})}
    if variant.changes:
        length["changes"] = list(variant.changes)
    log = work / config.output / "logs" / "log.jsonl"
    if not shipped and log.exists():
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        # A validation has a row of its own.
        length["loss"] = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
    return length


def main(proof: Proof) -> None:
    """Run a proof from the command line.

    Args:
        proof (`Proof`): The proof.
    """
    parser = argparse.ArgumentParser(description=f"{proof.title}: train on the tiny model and score.")
    parser.add_argument("--work", type=Path, default=Path("proofs"), help="folder of data and checkpoints")
    parser.add_argument("--items", type=int, default=ITEMS, help=f"held-out items (default: {ITEMS})")
    parser.add_argument("--shipped", action="store_true", help="score the modules that ship, without training")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    proof.run(arguments.work.resolve(), arguments.items, arguments.shipped)
