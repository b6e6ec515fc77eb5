"""Rows of a section: what is measured, one at a time, and what becomes of those that cannot run."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from benchmarks.gpu.clock import reason
from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.results import FINAL, Results
from benchmarks.gpu.sizes import Size


Measure = Callable[[Kit], Mapping[str, Any]]
# Below this share of the time that was given, a row that was stopped may still fit into another run.
WHOLE = 0.8


@dataclass(frozen=True)
class Row:
    """One row of a section's table.

    Args:
        name (`str`): What is measured, in words.
        settings (`dict[str, Any]`): Sizes and settings, which tell the row from others of that name.
        measure (`Callable`):
            Measures the row and returns its values by column; `"notes"` holds sentences about sides that could not
            run. It raises [`Missing`] if the row needs something that is not there.
    """

    name: str
    settings: dict[str, Any]
    measure: Measure


@dataclass(frozen=True)
class Section:
    """A part of the figures.

    Args:
        letter (`str`): Its place: those of the first letters are worth most.
        name (`str`): Its name on the command line.
        title (`str`): Its heading.
        about (`str`): What is measured, and how, for the page.
        minutes (`int`): How long it takes on a fast card, roughly.
        columns (`Mapping[str, str]`): Headings of the values, by their names.
        rows (`Callable`): Returns the rows for a size, without building anything.
        heads (`Mapping[str, str]`): Headings of settings that the table shows, by their names.
        base (`tuple[str, str]`, *optional*):
            A row and a value: the column `"relative"` divides that value of each row by that of this one.
    """

    letter: str
    name: str
    title: str
    about: str
    minutes: int
    columns: Mapping[str, str]
    rows: Callable[[Size], Sequence[Row]]
    heads: Mapping[str, str] = field(default_factory=dict)
    base: tuple[str, str] | None = None


class TimeUp(BaseException):
    """The time is over; not an error, so that nothing on the way takes it for one."""


def run_sections(sections: Sequence[Section], kit: Kit, results: Results, minutes: float, retry: bool) -> bool:
    """Measure rows that the results lack, until the time is over.

    Args:
        sections (`Sequence[Section]`): In the order in which they run.
        kit (`Kit`): The device and the models.
        results (`Results`): Where the rows are written.
        minutes (`float`): The time.
        retry (`bool`): Whether rows that failed run again.

    Returns:
        `bool`: whether no row is left.

    Raises:
        BrokenDeviceError: if a row left the device in a state in which nothing runs; another process can go on.
    """
    end = time.monotonic() + 60 * minutes
    for section in sections:
        for row in section.rows(kit.size):
            status = results.status(section.letter, row.name, row.settings)
            # A row that had begun and has no result took the process with it.
            if status == "done" or (status in ("begun", *FINAL) and not retry):
                continue
            left = end - time.monotonic()
            if left <= 0 or not _run_row(section, row, kit, results, left, 60 * minutes):
                return False
        kit.forget()
    return True


def _run_row(section: Section, row: Row, kit: Kit, results: Results, left: float, whole: float) -> bool:
    """Measure one row; returns whether there is time for others."""
    place, begin = (section.letter, row.name, row.settings), time.monotonic()
    results.put(*place, "begun", why="The process ended while this row ran.")
    more: dict[str, Any] = {}
    try:
        with _alarm(left):
            values = dict(row.measure(kit))
        status, more = "done", {"notes": values.pop("notes", []), "values": values}
    except Missing as missing:
        status, more = "missing", {"why": str(missing)}
    except TimeUp:
        status = "failed" if time.monotonic() - begin >= WHOLE * whole else "stopped"
        more = {"why": f"Stopped after {time.monotonic() - begin:.0f} s: the time was over."}
    except KeyboardInterrupt:
        results.put(*place, "stopped", why="Interrupted.")
        raise
    except Exception as error:  # Whatever a library raises is the row's result; the next rows go on.
        status, more = "failed", {"why": reason(error)}
    seconds = round(time.monotonic() - begin, 1)
    results.put(*place, status, seconds=seconds, **more)
    _say(section, row, status, seconds, more)
    if status != "done":
        kit.forget()
        kit.clock.check()
    return time.monotonic() - begin < left


def _say(section: Section, row: Row, status: str, seconds: float, more: dict[str, Any]) -> None:
    settings = ", ".join(f"{name} {value}" for name, value in row.settings.items())
    found = more.get("why") or ", ".join(f"{name} {shown(value)}" for name, value in more["values"].items())
    lines = [f"{section.letter} {row.name} ({settings}): {status}, {seconds:.0f} s: {found}", *more.get("notes", [])]
    sys.stdout.write("\n  ".join(lines) + "\n")
    sys.stdout.flush()


def shown(value: Any) -> str:
    """Return a value as tables show it: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise [`TimeUp`] in the block when the time is over, where the system can."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
