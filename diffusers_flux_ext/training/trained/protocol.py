"""What the trainer and its checkpoints ask of whatever is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...checkpoints.layouts import list_keys
from .info import ExportInfo


class Trained(Protocol):
    """A set of parameters that are trained together, and the files that they end up in."""

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters by names that depend on neither wrappers nor the adapter's name."""

    def state(self) -> dict[str, Tensor]:
        """Return the values of all parameters, whole and on the CPU, by the same names."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put the values of [`state`] back, all or none.

        Args:
            state (`Mapping[str, torch.Tensor]`): Values by name.

        Raises:
            ValueError: if names or shapes are not those of the parameters.
        """

    def train(self, mode: bool = True) -> None:
        """Turn the dropout of what is trained on or off; everything else stays as it is."""

    def export(
        self, folder: str | os.PathLike[str], info: ExportInfo, average: Mapping[str, Tensor] | None = None
    ) -> list[Path]:
        """Write the files for inference.

        Where parameters are shared by several processes, all of them have to call this; the first one writes.

        Args:
            folder (`str` or `os.PathLike`): Where to; it is made if it is missing.
            info (`ExportInfo`): What is noted in the files.
            average (`Mapping[str, torch.Tensor]`, *optional*):
                Values to write in place of the parameters', such as a running average, by the same names.

        Returns:
            `list[Path]`: the files and folders.
        """


def gathered(parameter: Tensor) -> Tensor:
    """Return a parameter's values on the CPU, whole even if several processes share it.

    Args:
        parameter (`torch.Tensor`): The parameter; with FSDP2 all processes have to call this.

    Returns:
        `torch.Tensor`: not a view of the parameter. Of one that is shared out, processes that write no files get a
        tensor without values, so that a machine's memory holds it once.
    """
    values: Any = parameter.detach()
    if hasattr(values, "full_tensor"):
        values = values.full_tensor()
        if not is_writer():
            return torch.empty_like(values, device="meta")
    values = values.clone() if values.device.type == "cpu" else values.cpu()
    return values.contiguous()


def is_writer() -> bool:
    """Whether this process writes files: the first one does, where there are several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def state_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the values of parameters; see [`Trained.state`]."""
    return {name: gathered(parameter) for name, parameter in parameters.items()}


@torch.no_grad()
def load_into(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Put values into parameters; see [`Trained.load`]."""
    check_values(parameters, state, "state")
    for name, parameter in parameters.items():
        values = state[name].to(parameter.device)
        target: Any = parameter.data
        if hasattr(target, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            values = distribute_tensor(values.to(target.dtype), target.device_mesh, target.placements)
        target.copy_(values)


def check_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], what: str) -> None:
    """Raise a `ValueError` unless there is a value of the right shape for each parameter, and for nothing else."""
    differ = sorted(parameters.keys() ^ values.keys())
    differ += [name for name in parameters.keys() & values.keys() if parameters[name].shape != values[name].shape]
    if differ:
        raise ValueError(
            f"`{what}` does not belong to what is trained: {list_keys(differ)} are missing, unknown or of another "
            f"shape. Use the options that it was made with."
        )


def chosen_values(trained: Trained, average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return what is exported: the average if there is one, else the present values."""
    if average is None:
        return trained.state()
    check_values(trained.named_parameters(), average, "average")
    return {name: gathered(value) for name, value in average.items()}


def mark_trainable(models: Iterable[nn.Module], trained: Trained) -> None:
    """Let gradients be computed for exactly what is trained.

    Args:
        models (`Iterable[torch.nn.Module]`): The models; all other parameters of them are frozen.
        trained (`Trained`): What is trained.
    """
    for model in models:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    for parameter in trained.named_parameters().values():
        parameter.requires_grad_(True)
