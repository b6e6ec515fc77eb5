"""Several things that are trained in one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from .info import ExportInfo
from .protocol import Trained, check_values


class TrainedTogether:
    """Several things that are trained in one run, such as a LoRA and a ControlNet.

    Args:
        parts (`Mapping[str, Trained]`): Each under a name without a slash, which begins the names of its parameters.

    Raises:
        ValueError: if there is no part, a name has a slash, or two parts train one parameter.
    """

    def __init__(self, parts: Mapping[str, Trained]) -> None:
        wrong = [name for name in parts if not name or "/" in name]
        if wrong or not parts:
            raise ValueError(f"`parts` has the names {list(parts)}; expected at least one, and none with a slash.")
        self.parts = dict(parts)
        owners: dict[int, str] = {}
        for name, parameter in self.named_parameters().items():
            if id(parameter) in owners:
                raise ValueError(f"`{owners[id(parameter)]}` and `{name}` are one parameter. Train it in one part.")
            owners[id(parameter)] = name
            # Each part has frozen everything else of its models, the other parts included.
            parameter.requires_grad_(True)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """See [`Trained.named_parameters`]."""
        return {
            f"{part}/{name}": parameter
            for part, trained in self.parts.items()
            for name, parameter in trained.named_parameters().items()
        }

    def state(self) -> dict[str, Tensor]:
        """See [`Trained.state`]."""
        return {f"{part}/{name}": v for part, trained in self.parts.items() for name, v in trained.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See [`Trained.load`]."""
        check_values(self.named_parameters(), state, "state")
        for part, trained in self.parts.items():
            trained.load(dict(_of_part(state, part)))

    def train(self, mode: bool = True) -> None:
        """See [`Trained.train`]."""
        for trained in self.parts.values():
            trained.train(mode)

    def export(
        self, folder: str | os.PathLike[str], info: ExportInfo, average: Mapping[str, Tensor] | None = None
    ) -> list[Path]:
        """See [`Trained.export`]; all parts share the folder."""
        if average is not None:
            check_values(self.named_parameters(), average, "average")
        written: list[Path] = []
        for part, trained in self.parts.items():
            own = None if average is None else dict(_of_part(average, part))
            written += trained.export(folder, info, own)
        return written


def _of_part(values: Mapping[str, Tensor], part: str) -> Iterator[tuple[str, Tensor]]:
    start = f"{part}/"
    return ((name.removeprefix(start), value) for name, value in values.items() if name.startswith(start))
