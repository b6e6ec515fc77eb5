"""The reviewed table of the values that are accepted."""

import inspect
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.support.wrong_inputs.subjects import public
from benchmarks.support.wrong_inputs.trials import Trial
from diffusers_flux_ext import FluxConditionedPipeline


PATH = Path(__file__).parents[2] / "tests" / "inputs" / "accepted_inputs.json"
BASE = FluxConditionedPipeline.__name__
Table = dict[str, dict[str, list[str]]]


def is_own(trial: Trial) -> bool:
    """Whether the table covers it: the common arguments of named pipelines stand there once, for their base class."""
    common = inspect.signature(FluxConditionedPipeline.__call__).parameters
    named = trial.subject != BASE and trial.subject in public(FluxConditionedPipeline)
    return not (named and trial.argument in common)


def write_accepted(trials: Iterable[Trial]) -> None:
    """Write the table of these trials, as far as it covers them."""
    table: Table = {}
    for trial in trials:
        if is_own(trial):
            table.setdefault(trial.subject, {}).setdefault(trial.argument, []).append(trial.value)
    PATH.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_accepted() -> set[Trial]:
    """The trials that the table says are accepted."""
    table: Table = json.loads(PATH.read_text(encoding="utf-8"))
    return {
        Trial(subject, argument, value)
        for subject, arguments in table.items()
        for argument, values in arguments.items()
        for value in values
    }
