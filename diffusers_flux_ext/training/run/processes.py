"""Several processes, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from ..config.sections import TrainingConfig
from .monitor import tensorboard_writer


WRITERS = {"terminal", "jsonl", "csv", "tensorboard"}


def check_logs(names: Sequence[str]) -> None:
    """Check that every log can be written.

    Args:
        names (`Sequence[str]`): `run.logs`.

    Raises:
        ValueError: if a name is not known.
        ImportError: if a package is missing; the message has the command that installs it.
    """
    for name in names:
        if name == "tensorboard":
            tensorboard_writer()
        elif name not in WRITERS:
            known = sorted({*WRITERS, *map(str, LOGGER_TYPE_TO_CLASS)})
            if name not in known:
                raise ValueError(f"`run.logs` has {name!r}; expected some of {known}.")
            if name not in map(str, get_available_trackers()):
                raise ImportError(f"`run.logs` has {name!r}, which needs `pip install {name.replace('_', '-')}`.")


def make_accelerator(config: TrainingConfig) -> Any:
    """Return an `Accelerator` if there are several processes or trackers, else `None`.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `accelerate.Accelerator` or `None`

    Raises:
        ValueError: if a log is not known.
        ImportError: if a log's package is missing.
    """
    check_logs(config.run.logs)
    trackers = [name for name in config.run.logs if name not in WRITERS]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not trackers:
        return None
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A batch whose samples lack a condition does not use the condition's module.
    unused = any(each.is_trained for each in config.conditions)
    accelerator = Accelerator(
        cpu=config.model.device == "cpu",
        log_with=trackers or None,
        project_dir=config.output,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused, gradient_as_bucket_view=True)],
    )
    if trackers:
        accelerator.init_trackers("diffusers_flux_ext", config=_flat(config.identity()))
    return accelerator


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        parts = [_flat(value, f"{prefix}{name}.") for name, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    simple = isinstance(tree, (str, int, float, bool))
    return {prefix.rstrip("."): tree if simple else str(tree)}
