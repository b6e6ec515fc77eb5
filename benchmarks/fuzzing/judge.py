"""The outcome of a call with a broken file."""

from __future__ import annotations

import ast
import contextlib
import gc
import io
import logging
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from types import FrameType, TracebackType

import diffusers_flux_ext

from .mutations import mutate
from .reader import Reader


PACKAGE = Path(diffusers_flux_ext.__file__).parent
SCRIPTS = PACKAGE.parent / "conversion_scripts"
SECONDS = 10
ALLOWANCE = 96 * 2**20
FINE = ("read", "refused")
FINDINGS = ("foreign", "unnamed", "long", "left over", "memory", "hang", "crash")


class TimeIsUp(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of one file.

    Attributes:
        outcome (`str`):
            `"read"`; `"refused"`, clearly and with the file's name; or a finding: `"foreign"` (an exception that the
            package did not raise itself), `"unnamed"` (a message without the file's name), `"long"` (a message of more
            than 4,000 characters), `"left over"` (something written by a call that failed), `"memory"`, `"hang"`,
            `"crash"`.
        mutation (`str`): How the file was changed.
        message (`str`): The message, or its origin.
        memory (`int`): Bytes that the call took at most.
    """

    outcome: str
    mutation: str
    message: str = ""
    memory: int = 0


class Bench:
    """Tries one reader with changed files, in a folder of its own.

    Args:
        reader (`Reader`): The reader.
        folder (`Path`): An empty folder.
    """

    def __init__(self, reader: Reader, folder: Path) -> None:
        self.reader = reader
        self.sources = folder / "sources"
        self.sources.mkdir()
        self.path = reader.build(self.sources)
        self.valid = self.path.read_bytes()
        self.contents = [self.valid, *reader.others()]
        self.folder = folder

    def check_valid(self) -> Verdict:
        """Check that the unchanged file can be read."""
        verdicts = [self._judge(data, "none") for data in self.contents]
        return next((verdict for verdict in verdicts if verdict.outcome not in FINE), verdicts[0])

    def try_seed(self, seed: int) -> Verdict:
        """Return one changed file."""
        valid = self.contents[seed % len(self.contents)]
        data, mutation = mutate(valid, self.path, seed, self.reader.mutations)
        return self._judge(data, mutation)

    def _judge(self, data: bytes, mutation: str) -> Verdict:
        self.path.write_bytes(data)
        written = Path(tempfile.mkdtemp(dir=self.folder))
        outcome, message = "read", ""
        stderr = io.StringIO()
        before = _reset_peak()
        try:
            with _quiet(stderr), _time_limit(SECONDS):
                code = self.reader.call(self.path, written / "result")
            if isinstance(code, int) and code:
                outcome, message = self._refused(stderr.getvalue())
        except TimeIsUp as error:
            outcome, message = "hang", _where(error.__traceback__)
        except MemoryError as error:
            outcome, message = "memory", _where(error.__traceback__)
        except Exception as error:
            outcome, message = self._raised(error)
        taken = _peak() - before
        if outcome in FINE and taken > 2 * len(data) + ALLOWANCE + self.reader.memory:
            outcome, message = "memory", f"{taken >> 20} MiB for {len(data) >> 10} KiB; {outcome}: {message}"
        if outcome != "read" and any(written.iterdir()):
            outcome, message = "left over", f"{sorted(p.name for p in written.iterdir())}; {message}"
        shutil.rmtree(written)
        return Verdict(outcome, mutation, message[:4000], taken)

    def _raised(self, error: Exception) -> tuple[str, str]:
        first = _unnamed(error)
        expected = isinstance(first, ValueError | TypeError) and _raised_here(first.__traceback__)
        if expected or isinstance(error, OSError):
            return self._refused(str(error))
        return "foreign", f"{type(error).__name__}: {str(error)[:300]} at {_where(first.__traceback__)}"

    def _refused(self, message: str) -> tuple[str, str]:
        if "Traceback" in message:
            return "foreign", message
        # With several files, the folder is named where it is unknown which file is to blame.
        if self.path.name not in message and str(self.sources) not in message:
            return "unnamed", message
        return ("long" if len(message) > 4000 else "refused"), message


def _unnamed(error: BaseException) -> BaseException:
    """Return the error to which `naming` only added the file's name."""
    frames = list(traceback.walk_tb(error.__traceback__))
    is_named = bool(frames) and frames[-1][0].f_code.co_name == "naming"
    return _unnamed(error.__cause__) if is_named and error.__cause__ is not None else error


@lru_cache
def _raise_lines(file: str) -> frozenset[int]:
    tree = ast.parse(Path(file).read_text())
    return frozenset(
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    )


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether an exception comes from a `raise` of the package, and not from a library that it called."""
    frames = list(traceback.walk_tb(trace))
    frame, line = frames[-1]
    file = Path(frame.f_code.co_filename)
    return (PACKAGE in file.parents or SCRIPTS in file.parents) and line in _raise_lines(str(file))


def _where(trace: TracebackType | None) -> str:
    frames = list(traceback.walk_tb(trace))
    inside = [(f, line) for f, line in frames if PACKAGE in Path(f.f_code.co_filename).parents]
    chosen = [*inside[-1:], frames[-1]]
    return " > ".join(f"{Path(f.f_code.co_filename).name}:{line} {f.f_code.co_name}" for f, line in chosen)


@contextlib.contextmanager
def _quiet(stderr: io.StringIO) -> Iterator[None]:
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        except SystemExit as stop:
            # Of argparse: a wrong command line.
            raise RuntimeError(f"exit {stop.code}: {stderr.getvalue()}") from stop
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp

    # Processor time, since others use the machine as well. A waiting process is stopped by its parent.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Reset the peak; return the resident memory, or 0 where it cannot be measured."""
    try:
        gc.collect(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS:")
    except OSError:
        return 0


def _peak() -> int:
    try:
        return _status("VmHWM:")
    except OSError:
        return 0


def seeds_of(reader: str, count: int, seed: int) -> list[int]:
    """Seeds of `count` files of a reader; `seed` chooses another series."""
    rng = Random(f"{reader} {seed}")
    return [rng.randrange(2**32) for _ in range(count)]
