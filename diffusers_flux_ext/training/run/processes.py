"""Several processes, through accelerate."""

from __future__ import annotations

import os
from typing import Any

from ..config.sections import TrainingConfig


WRITERS = {"terminal", "jsonl", "csv", "tensorboard"}


def make_accelerator(config: TrainingConfig) -> Any:
    """Return an `Accelerator` if there are several processes or trackers, else `None`.

    Args:
        config (`TrainingConfig`): The configuration.

    Returns:
        `accelerate.Accelerator` or `None`
    """
    trackers = [name for name in config.run.logs if name not in WRITERS]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not trackers:
        return None
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # A batch whose samples lack a condition does not use the condition's module.
    unused = any(module.train for each in config.conditions for module in each.modules.values())
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
