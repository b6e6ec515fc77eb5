"""Samples that lack a condition whose module is trained."""

from __future__ import annotations

from collections.abc import Iterator

from ..config.sample_sections import ConditionSection
from ..config.sections import TrainingConfig
from ..data import TrainingData
from .templates import is_empty


def with_trained_modules(config: TrainingConfig) -> list[ConditionSection]:
    """Return the conditions that have inputs and modules that are trained."""
    return [each for each in config.conditions if each.inputs and each.is_trained]


def check_something_is_trained(config: TrainingConfig, data: TrainingData) -> None:
    """Raise a `ValueError` if nothing that is trained takes part in the loss of some samples.

    Args:
        config (`TrainingConfig`): The configuration.
        data (`TrainingData`): The data.
    """
    train, trained = config.train, with_trained_modules(config)
    everywhere = train.loras or train.weights is not None or train.fusion is not None
    if everywhere or len(trained) < sum(each.is_trained for each in config.conditions):
        return
    rows = [name for name, lacking in _lacking(data, trained) if trained and len(lacking) == len(trained)]
    if rows:
        raise ValueError(
            f"{len(rows)} samples have no input for {_names(trained)}, whose modules are all that is trained, so that "
            f"nothing would be learnt from them: {rows[0]} is the first. Leave them out, or train a LoRA as well."
        )


def check_all_have_trained_conditions(config: TrainingConfig, data: TrainingData) -> None:
    """Raise a `ValueError` if processes that share weights out would not all run a module that is trained.

    Args:
        config (`TrainingConfig`): The configuration.
        data (`TrainingData`): The data.
    """
    rows = [(name, lacking) for name, lacking in _lacking(data, with_trained_modules(config)) if lacking]
    if rows:
        raise ValueError(
            f"{len(rows)} samples lack an input of a condition whose module is trained ({rows[0][0]} is the first, "
            f"without {_names(rows[0][1])}). With weights that are shared out over processes (FSDP) all of them have "
            f"to run that module in every update. Leave these samples out, or launch with "
            f"`examples/training/accelerate/ddp.yaml`."
        )


def _lacking(data: TrainingData, sections: list[ConditionSection]) -> Iterator[tuple[str, list[ConditionSection]]]:
    """Yield each row's name, and the conditions all of whose columns are empty in it."""
    for entry, number in dict.fromkeys((item.entry, item.row) for item in data.items) if sections else ():
        row = data.row(entry, number)
        given = {column for column, value in row.values.items() if not is_empty(value)}
        given |= {column for column, _ in row.all_files()}
        yield row.name, [each for each in sections if not given & set(each.inputs.values())]


def _names(sections: list[ConditionSection]) -> str:
    return ", ".join(f"`{each.type}`" for each in sections)
