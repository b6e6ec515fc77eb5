"""Training a module of a condition, alone or beside something else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...methods.method import resolve
from .export import export_module
from .info import ExportInfo
from .names import nearest, select
from .protocol import chosen_values, gathered, load_into, mark_trainable, state_of
from .scratch import find_record


class TrainedModule:
    """A module of a condition whose weights are trained, all of them or some; see [`Trained`].

    Args:
        module (`torch.nn.Module`): A module with a config, such as a ControlNet.
        name (`str`): Its name, which begins the names of its parameters and is that of its folder.
        patterns (`Sequence[str]`, *optional*): Which parameters or parts; see [`select`]. All by default.
        single_file (`bool`, defaults to `False`): Whether the layout of the published files is exported, too.

    Raises:
        ValueError: if a pattern matches nothing, or weights are quantised.
    """

    def __init__(
        self, module: Any, name: str, patterns: Sequence[str] | None = None, *, single_file: bool = False
    ) -> None:
        if not name or "." in name or "/" in name:
            raise ValueError(f"`name` is {name!r}; expected a name without dots and slashes.")
        self.module, self.name, self.single_file = module, name, single_file
        own = [each for each, _ in module.named_parameters()]
        of = f"parameter of {type(module).__name__}"
        self.parameters = own if patterns is None else select(own, patterns, "patterns", of)
        check_floats({key: module.get_parameter(key) for key in self.parameters}, name)
        mark_trainable([module], self)
        self.train()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """See [`Trained.named_parameters`]: `"controlnet.controlnet_blocks.0.weight"`, for example."""
        return {f"{self.name}.{key}": self.module.get_parameter(key) for key in self.parameters}

    def state(self) -> dict[str, Tensor]:
        """See [`Trained.state`]."""
        return state_of(self.named_parameters())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See [`Trained.load`]."""
        load_into(self.named_parameters(), state)

    def train(self, mode: bool = True) -> None:
        """See [`Trained.train`]."""
        self.module.train(mode)

    def export(
        self, folder: str | os.PathLike[str], info: ExportInfo, average: Mapping[str, Tensor] | None = None
    ) -> list[Path]:
        """Write the module's folder, and its published layout if `single_file`; see [`Trained.export`]."""
        tensors = whole_weights(dict(self.module.state_dict(keep_vars=True)), f"{self.name}.", self, average)
        found = find_record(self.module)
        files = resolve(found[0].package, found[1].files) if found and found[1].files else None
        metadata = info.metadata(module=type(self.module).__name__)
        return export_module(
            self.module, folder, self.name, metadata, tensors, files=files, single_file=self.single_file
        )


def whole_weights(
    tensors: Mapping[str, Tensor], start: str, trained: Any, average: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Return all weights of a model, what is trained in it at the values that are exported.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): The model's tensors.
        start (`str`): Begins the names of what is trained.
        trained (`Trained`): What is trained.
        average (`Mapping[str, torch.Tensor]`, *optional*): Values in place of the present ones.

    Returns:
        `dict[str, torch.Tensor]`: in the data types of the model.
    """
    values = chosen_values(trained, average)
    return dict(_replaced(tensors, start, values))


def _replaced(tensors: Mapping[str, Tensor], start: str, values: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        value = values.get(start + key)
        yield key, gathered(tensor) if value is None else value.to(tensor.dtype)


def check_floats(parameters: Mapping[str, nn.Parameter], what: str) -> None:
    """Raise a `ValueError` if parameters are quantised or stored in 8 bits, which no gradient can change."""
    wrong = [
        name
        for name, parameter in parameters.items()
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point() or parameter.dtype.itemsize < 2
    ]
    if wrong:
        close = ", ".join(map(repr, nearest(wrong, wrong[0])))
        raise ValueError(
            f"{len(wrong)} weights of `{what}` are quantised or stored in 8 bits, such as {close}: gradients cannot "
            f"change them. Load the unquantised model, or train a LoRA on this one."
        )
