"""What the queue needs of whatever draws jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class StepLike(Protocol):
    """A step that is done."""

    @property
    def step(self) -> int:
        """Its number, from 1."""

    @property
    def total(self) -> int:
        """The number of steps."""

    @property
    def preview(self) -> Callable[[], Image.Image]:
        """Makes an image of what it looks like so far."""


OnStep = Callable[[StepLike], None]


class Drawer(Protocol):
    """Checks and draws jobs in clients' words."""

    def arguments(self, job: Mapping[str, Any]) -> frozenset[str] | None:
        """Return the names of the call arguments of a job's pipeline; `None` if it takes any."""

    def check(self, job: Mapping[str, Any]) -> int | None:
        """Raise a `RequestError` with every wrong field; return the number of steps if it is known."""

    def can_join(self, job: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether two jobs of a model can be drawn in one call."""

    def draw(
        self, model: str, jobs: Sequence[Mapping[str, Any]], folders: Sequence[Path], on_step: OnStep
    ) -> list[list[dict[str, Any]]]:
        """Draw jobs in one call and write their images, without places in their metadata.

        Args:
            model (`str`): The name of the model, whose thread this is.
            jobs (`Sequence[Mapping[str, Any]]`): One job, or several that can be joined.
            folders (`Sequence[Path]`): Where to write the images of each.
            on_step (`Callable`): Called after each step; what it raises ends the drawing.

        Returns:
            `list[list[dict]]`: for each job `file`, `seed`, `width` and `height` of its images.
        """

    def release(self, model: str) -> None:
        """Let the memory of a model go, which is not being drawn with."""
