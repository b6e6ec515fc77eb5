"""The progress of a run: a bar on a terminal, and a line for each job elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .errors import in_short


if TYPE_CHECKING:
    from ..jobs.batch import Outcome, Work


@contextmanager
def steps_shown(title: str) -> Iterator[Callable[[Any], None] | None]:
    """Show a bar of denoising steps on a terminal.

    Args:
        title (`str`): What stands before the bar.

    Yields:
        `Callable`, *optional*: to be called after each step; `None` without a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with tqdm(desc=title, unit="step", dynamic_ncols=True) as bar:

        def show(info: Any) -> None:
            bar.total = info.total
            bar.update()

        yield show


class Progress:
    """Tells how far a run is.

    Args:
        title (`str`): Prefix of lines.
        total (`int`): How many jobs there are.
        done (`int`): How many of them are settled already.
    """

    def __init__(self, title: str, total: int, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self.failed = 0
        # `None`: no bar unless it is a terminal.
        self._bar: Any = tqdm(total=total, initial=done, unit="job", disable=None, dynamic_ncols=True)

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return not self._bar.disable

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def start(self, work: Work) -> None:
        """Say which job is drawn now."""
        self._bar.set_description_str(work.place[-40:])

    def step(self, info: Any) -> None:
        """Say which step it is at."""
        failed = f", {self.failed} failed" if self.failed else ""
        self._bar.set_postfix_str(f"step {info.step}/{info.total}{failed}")

    def finish(self, outcome: Outcome) -> None:
        """Count a job, and say why it failed."""
        self.done += 1
        self._bar.update()
        place = outcome.work.place
        if outcome.error is not None:
            self.failed += 1
            self._line(f"{place}: failed: {in_short(outcome.error)}")
        elif outcome.result is not None and not self.is_shown:
            self._line(f"{self.done}/{self.total} {place}: {outcome.result.seconds:.1f} s")

    def _line(self, text: str) -> None:
        # Above the bar.
        tqdm.write(f"{self.title}: {text}", file=sys.stderr)
