"""What is checked before a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from ..columns_read import check_columns
from ..compiling import check_compiler
from ..config.sections import TrainingConfig
from ..data import DataReport, TrainingData
from ..draws import Draws
from ..frozen import check_storage
from ..optim import check_optimizer
from .absent import check_something_is_trained
from .model import choose_device
from .processes import check_logs
from .samples import open_data
from .teaching import check_steps
from .templates import condition_class


def check_run(config: TrainingConfig) -> tuple[TrainingData, DataReport]:
    """Check all that can be checked before a model is loaded: names, packages, the device and every sample's header.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `tuple[TrainingData, DataReport]`

    Raises:
        ValueError: if something is wrong.
        ImportError: if a package is missing.
    """
    device = choose_device(config.model.device)
    if config.model.compile:
        check_compiler(device)
    check_optimizer(config.optimizer)
    check_storage(config.model.storage)
    for condition in config.conditions:
        check_columns(condition_class(condition.type), condition.inputs)
    check_steps(config)
    for lora in config.train.base_loras or []:
        if not Path(lora.path).exists():
            raise FileNotFoundError(f"There is no `{lora.path}`, which `train.base_loras` names. Give a file.")
    check_logs(config.run.logs)
    _check_can_write("output", Path(config.output))
    if config.model.stream_folder is not None:
        _check_can_write("model.stream_folder", Path(config.model.stream_folder))
    data, report = open_data(config, Draws(config.seed))
    check_something_is_trained(config, data)
    return data, report


def _check_can_write(name: str, folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir() or not os.access(path, os.W_OK):
                why = "cannot be written to" if path.is_dir() else "is not a folder"
                raise ValueError(f"`{name}` is `{folder}`, but `{path}` {why}. Give the name of another folder.")
            return
