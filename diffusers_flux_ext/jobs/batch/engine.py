"""What draws jobs, and what it is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..metadata import encode_result_image


@dataclass(frozen=True)
class Work:
    """A job to draw.

    Attributes:
        name (`str`): The name of its results.
        digest (`str`): The job's digest.
        place (`str`): Where it stands in the list.
        job (`Job`): The job.
        files (`JobFiles`): Finds its inputs.
    """

    name: str
    digest: str
    place: str
    job: Any
    files: Any


@dataclass(frozen=True)
class Encoded:
    """An image as it is written, with its job in its metadata.

    Attributes:
        data (`bytes`): The file's content.
        width (`int`): Pixels.
        height (`int`): Pixels.
    """

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """What a job gave.

    Attributes:
        images (`Sequence[Encoded]`): Its images.
        seeds (`Sequence[int]`): For each image the seed of its noise.
        seconds (`float`): How long it took.
    """

    images: Sequence[Encoded]
    seeds: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        work (`Work`): The job.
        result (`Drawn`, *optional*): Its images; `None` if it failed.
        error (`Exception`, *optional*): Why it failed.
    """

    work: Work
    result: Drawn | None = None
    error: Exception | None = None


class Engine(Protocol):
    """Draws jobs, in this process, in others or on other machines.

    The bookkeeping hands out work that is claimed when it is taken from the iterable, and saves what is reported. So
    an engine takes as much as it can draw at once, and reports in any order, from one thread. It must report all that
    it took, failures included. Several processes with engines of their own may share a folder of results as well.
    """

    def run(self, work: Iterable[Work | None], report: Callable[[Outcome], None]) -> None:
        """Draw all work.

        Args:
            work (`Iterable[Work | None]`):
                What to draw, in an order in which neighbours share models, LoRAs and texts. `None` comes, after a
                pause, while other processes hold all that is left: report what has been drawn, and ask again.
            report (`Callable`): Called with the outcome of each.
        """


class LocalEngine:
    """Draws one job after another in this process.

    Args:
        runner (`JobRunner`): Keeps what neighbouring jobs share.
        on_start (`Callable`, *optional*): Called with each job before it is drawn.
        on_step (`Callable`, *optional*): Called after each denoising step with a `StepInfo`.
    """

    def __init__(
        self,
        runner: Any,
        on_start: Callable[[Work], None] | None = None,
        on_step: Callable[[Any], None] | None = None,
    ) -> None:
        self.runner = runner
        self.on_start = on_start
        self.on_step = on_step

    def run(self, work: Iterable[Work | None], report: Callable[[Outcome], None]) -> None:
        """Draw all work, see [`Engine`]."""
        for each in work:
            if each is None:
                continue
            if self.on_start is not None:
                self.on_start(each)
            report(draw(self.runner, each, self.on_step))


def draw(runner: Any, work: Work, on_step: Callable[[Any], None] | None = None) -> Outcome:
    """Draw a job; a failure is its outcome.

    Args:
        runner (`JobRunner`): Draws.
        work (`Work`): The job.
        on_step (`Callable`, *optional*): Called after each denoising step.

    Returns:
        `Outcome`
    """
    try:
        return Outcome(work, drawn(runner, work.job, work.files, on_step))
    except Exception as error:
        # Any job may be wrong in any way: the others are drawn nevertheless.
        return Outcome(work, error=error)


def drawn(runner: Any, job: Any, files: Any, on_step: Callable[[Any], None] | None = None) -> Drawn:
    """Draw a job, and encode its images.

    Args:
        runner (`JobRunner`): Draws.
        job (`Job`): The job.
        files (`JobFiles`): Finds its inputs.
        on_step (`Callable`, *optional*): Called after each denoising step.

    Returns:
        `Drawn`
    """
    result = runner.run(job, files, on_step=on_step)
    images = [
        Encoded(encode_result_image(image, job, index, files), image.width, image.height)
        for index, image in enumerate(result.images)
    ]
    return Drawn(images, list(result.seeds), result.seconds)
