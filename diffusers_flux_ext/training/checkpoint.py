"""Checkpoints that a killed run can go on from: safetensors only, written completely or not at all."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or a folder to; renamed to `path` when the block ends well.

    Args:
        path (`str` or `os.PathLike`): Where the result shall be; its folder is made.

    Yields:
        `Path`: the temporary path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    yield temporary
    os.replace(temporary, target)


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
    """
    reserved = sorted(name for name in tensors if name.startswith("optimizer."))
    if reserved:
        raise ValueError(f"Names that start with 'optimizer.' are taken, but {reserved} came.")
    flat = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                flat[f"optimizer.{number}.{index}.{name}"] = torch.as_tensor(value).contiguous().cpu().clone()
    with atomic_path(path) as temporary:
        save_file(flat, temporary, metadata={"training": json.dumps({"step": step})})


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
        ValueError: if the file's names or shapes are not those of `tensors`.
    """
    if not os.path.exists(path):
        return 0
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
        step = json.loads(file.metadata()["training"])["step"]
    weights = {name: value for name, value in found.items() if not name.startswith("optimizer.")}
    _check(path, weights, tensors)
    with torch.no_grad():
        for name, value in weights.items():
            tensors[name].copy_(value)
    for number, optimizer in enumerate(optimizers):
        _restore(optimizer, {name: value for name, value in found.items() if name.startswith(f"optimizer.{number}.")})
    return int(step)


def _check(
    path: str | os.PathLike[str], found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    differ = sorted(found.keys() ^ wanted.keys())
    differ += [name for name in found.keys() & wanted.keys() if found[name].shape != wanted[name].shape]
    if differ:
        raise ValueError(
            f"The checkpoint {os.fspath(path)} does not belong to this model: {differ[:5]} differ, "
            f"{len(differ)} in all. Delete it to start over, or use the options it was written with."
        )


def _restore(optimizer: torch.optim.Optimizer, found: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in found.items():
        _, _, index, name = key.split(".", 3)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
