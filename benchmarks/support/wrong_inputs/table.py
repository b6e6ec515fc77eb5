"""The reviewed table of the values that are accepted."""

import inspect
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.support.wrong_inputs.subjects import public
from benchmarks.support.wrong_inputs.trials import Trial
from diffusers_flux_ext import FluxConditionedPipeline


PATH = Path(__file__).parents[3] / "tests" / "inputs" / "accepted_inputs.json"
BASE = FluxConditionedPipeline.__name__
Table = dict[str, dict[str, list[str]]]


def is_own(trial: Trial) -> bool:
    """Whether the table covers it: the common arguments of named pipelines stand there once, for their base class."""
    common = inspect.signature(FluxConditionedPipeline.__call__).parameters
    named = trial.subject != BASE and trial.subject in public(FluxConditionedPipeline)
    return not (named and trial.argument in common)


def write_accepted(tried: Iterable[Trial], accepted: Iterable[Trial]) -> None:
    """Write anew what the table says of the subjects that were tried; the others stay as they are."""
    # An entry keeps its place in the file.
    table = _read() | {trial.subject: {} for trial in tried}
    for trial in accepted:
        if is_own(trial):
            table.setdefault(trial.subject, {}).setdefault(trial.argument, []).append(trial.value)
    table = {name: arguments for name, arguments in table.items() if arguments}
    PATH.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read() -> Table:
    table: Table = json.loads(PATH.read_text(encoding="utf-8"))
    return table


def read_accepted() -> set[Trial]:
    """The trials that the table says are accepted."""
    return {
        Trial(subject, argument, value)
        for subject, arguments in _read().items()
        for argument, values in arguments.items()
        for value in values
    }
