"""What the queue needs of whatever draws jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def draw(self, model: str, job: Mapping[str, Any], folder: Path, on_step: OnStep) -> list[dict[str, Any]]:
        """Draw a job and write its images, without places in their metadata.

        Args:
            model (`str`): The name of the model, whose thread this is.
            job (`Mapping[str, Any]`): The job.
            folder (`Path`): Where to write.
            on_step (`Callable`): Called after each step; what it raises ends the drawing.

        Returns:
            `list[dict]`: `file`, `seed`, `width` and `height` of each image.
        """

    def release(self, model: str) -> None:
        """Let the memory of a model go, which is not being drawn with."""
