"""Checkpoints from which a killed run can resume: safetensors only, written completely or not at all."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.messages import list_keys, shorten
from ...checkpoints.reading import open_safetensors
from ...checkpoints.sizes import is_index
from ...checkpoints.writing import save_tensors, written_at_once


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or folder; it is renamed to `path` if the block succeeds.

    Args:
        path (`str` or `os.PathLike`): Where the result goes; its folder is created.

    Yields:
        `Path`: the temporary path.

    Raises:
        ValueError: if there is a folder, a device or the like at `path`.
        OSError: if it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_at_once(path) as temporary:
        yield temporary


def save_checkpoint(
    path: str | os.PathLike[str],
    step: int,
    tensors: Mapping[str, torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Write weights and optimizers to one safetensors file.

    Args:
        path (`str` or `os.PathLike`): The file.
        step (`int`): Number of finished steps.
        tensors (`Mapping[str, torch.Tensor]`): Weights, averages and whatever else must be kept.
        optimizers (`Sequence[torch.optim.Optimizer]`): Their state is kept; their options are the caller's.

    Raises:
        ValueError: if a tensor's name starts with `"optimizer."`.
        OSError: if the file cannot be written.
    """
    reserved = sorted(name for name in tensors if name.startswith("optimizer."))
    if reserved:
        raise ValueError(f"Names that start with 'optimizer.' are reserved, got {reserved}.")
    flat = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                flat[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).contiguous().cpu().clone()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_tensors(flat, path, {"training": json.dumps({"step": step})})


def load_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> int:
    """Read a checkpoint into tensors and optimizers, in place.

    Args:
        path (`str` or `os.PathLike`): The file.
        tensors (`Mapping[str, torch.Tensor]`): Filled by name.
        optimizers (`Sequence[torch.optim.Optimizer]`): As when it was written, over parameters in the same order.

    Returns:
        `int`: number of finished steps; 0 if there is no such file, and nothing is changed then.

    Raises:
        ValueError: if the file is broken, or its names, shapes or optimizers are not those of this run.
        OSError: if it cannot be read.
    """
    if not os.path.exists(path):
        return 0
    with open_safetensors(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
        step = _step(path, file.metadata())
    weights = {name: value for name, value in found.items() if not name.startswith("optimizer.")}
    _check(path, weights, tensors)
    states = [_state(path, number, optimizer, found) for number, optimizer in enumerate(optimizers)]
    _restore(path, optimizers, states)
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    return step


def _restore(
    path: str | os.PathLike[str], optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict[int, Any]]
) -> None:
    """Restore the optimizers' states, all or none."""
    before = [optimizer.state_dict() for optimizer in optimizers]
    try:
        for optimizer, state, whole in zip(optimizers, states, before):
            optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    # Each kind of optimizer fails in its own way on states that are not its own.
    except Exception as error:
        for optimizer, whole in zip(optimizers, before):
            optimizer.load_state_dict(whole)
        raise ValueError(f"The states in `{path}` are not those of these optimizers: {error!r}.") from error


def _step(path: str | os.PathLike[str], metadata: Mapping[str, str] | None) -> int:
    text = (metadata or {}).get("training", "")
    try:
        step = json.loads(text)["step"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`{path}` is not a checkpoint of `save_checkpoint`: its header has no step.") from error
    if type(step) is not int or not 0 <= step < 2**63:
        raise ValueError(f"The checkpoint `{path}` has the step {shorten(step)}; expected a whole number.")
    return step


def _check(
    path: str | os.PathLike[str], found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    differ = sorted(found.keys() ^ wanted.keys())
    differ += [name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape]
    if differ:
        raise ValueError(
            f"The checkpoint {os.fspath(path)} does not belong to this model: {list_keys(differ)} differ. Delete it "
            "to start over, or use the options it was written with."
        )


def _state(
    path: str | os.PathLike[str],
    number: int,
    optimizer: torch.optim.Optimizer,
    found: Mapping[str, torch.Tensor],
) -> dict[int, dict[str, Any]]:
    """Return the state of one optimizer, whose tensors are as large as its parameters, or numbers."""
    start = f"optimizer.{number}."
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in found.items():
        if not key.startswith(start):
            continue
        index, _, name = key.removeprefix(start).partition(".")
        fits = is_index(index) and int(index) < len(parameters) and name
        if not fits or value.shape not in (torch.Size(), parameters[int(index)].shape):
            raise ValueError(
                f"The checkpoint `{path}` does not belong to these optimizers: `{shorten(key)}` of shape "
                f"{tuple(value.shape)} fits none of their {len(parameters)} parameters."
            )
        state.setdefault(int(index), {})[name] = value
    return state
