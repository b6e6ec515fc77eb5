"""What a run reports: losses over all processes, losses by noise level, rates, speed and memory."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch


DECILES = 10
_SHOWN = {
    "loss": "loss",
    "loss/smoothed": "smoothed",
    "gradient_norm": "gradient",
    "rate/0.0": "rate",
    "samples_per_second": "samples per second",
    "validation/loss": "validation loss",
}


class Writer(Protocol):
    """Takes the numbers of an update."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of update number `step`."""

    def close(self) -> None:
        """Close files."""


class JSONLinesWriter:
    """Appends one line of JSON per report to a file.

    Args:
        path (`Path`): The file.
        start (`int`): Number of finished updates; later lines, of a run that was cut off, are removed.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= start]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = open(path, "a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of update number `step`."""
        # JSON has no NaN, which stands for a decile without a sample.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CSVWriter:
    """Appends one row per report to a file; a report with new names adds columns.

    Args:
        path (`Path`): The file.
        start (`int`): Number of finished updates; later rows are removed.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self._names, rows = ["step"], list[dict[str, Any]]()
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if row.get("step", "").isdecimal() and int(row["step"]) <= start]
                self._names = list(reader.fieldnames or self._names)
        self._open(rows)

    def _open(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file = open(self.path, "w", buffering=1, newline="")
        self._writer = csv.DictWriter(self._file, self._names)
        self._writer.writeheader()
        self._writer.writerows(rows)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of update number `step`."""
        new = [name for name in values if name not in self._names]
        if new:
            self._file.close()
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            self._names += new
            self._open(rows)
        self._writer.writerow({"step": step, **values})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TerminalWriter:
    """Writes a line per report to a stream.

    Args:
        stream (`TextIO`): Where to.
        updates (`int`): Updates of the run.
    """

    def __init__(self, stream: TextIO, updates: int) -> None:
        self._stream, self._updates = stream, updates

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line for update number `step`, if there is something to say."""
        shown = [f"{name} {values[key]:.4g}" for key, name in _SHOWN.items() if key in values]
        if shown:
            self._stream.write(f"update {step} of {self._updates}: {', '.join(shown)}\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the stream open, which belongs to somebody else."""


class TensorBoardWriter:
    """Writes scalars for TensorBoard.

    Args:
        folder (`Path`): The folder of its files.
        start (`int`): Number of finished updates; TensorBoard hides later points of an earlier run.

    Raises:
        ImportError: if `tensorboard` is not installed.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self._writer: Any = tensorboard_writer()(str(folder), purge_step=start + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of update number `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


def tensorboard_writer() -> Any:
    """Return TensorBoard's `SummaryWriter`; raise an `ImportError` that names the command where it is missing."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError("`run.logs` has 'tensorboard', which needs `pip install tensorboard`.") from error
    return SummaryWriter


class TrackerWriter:
    """Hands the numbers to accelerate's trackers (wandb, swanlab, clearml, ...).

    Args:
        accelerator (`accelerate.Accelerator`): With initialised trackers.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of update number `step`."""
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the trackers."""
        self._accelerator.end_training()


class Monitor:
    """Averages what happens between two reports.

    Args:
        writers (`Sequence[Writer]`): Where reports go.
        every (`int`, defaults to 10): Updates between two reports.
        smoothing (`float`, defaults to 0.98): How much of the smoothed loss is kept at each update.

    Attributes:
        gauges (`list[Callable[[], Mapping[str, float]]]`): Further numbers, read at each report.
    """

    def __init__(self, writers: Sequence[Writer] = (), every: int = 10, smoothing: float = 0.98) -> None:
        self.writers, self.every, self.smoothing = list(writers), every, smoothing
        self.smoothed: float | None = None
        self.gauges: list[Callable[[], Mapping[str, float]]] = []
        self._begin()

    def _begin(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._sigmas: list[torch.Tensor] = []
        self._norms: list[float] = []
        self._waited, self._samples, self._started = 0.0, 0, time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"smoothed": self.smoothed}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.smoothed = state["smoothed"]

    def update(
        self, step: int, losses: torch.Tensor, sigmas: torch.Tensor, norm: float, rates: Mapping[str, float],
        waited: float, skipped: int,
    ) -> None:  # fmt: skip
        """Take the numbers of an update, and report if it is time.

        Args:
            step (`int`): Number of finished updates.
            losses (`torch.Tensor` of shape `(samples,)`): Loss of each sample of the update, over all processes.
            sigmas (`torch.Tensor` of shape `(samples,)`): Their noise levels.
            norm (`float`): Norm of the gradient.
            rates (`Mapping[str, float]`): Learning rates by group.
            waited (`float`): Seconds spent waiting for data.
            skipped (`int`): Updates skipped so far because of numbers that are not finite.
        """
        mean = float(losses.mean())
        if mean == mean:
            before = self.smoothed
            self.smoothed = mean if before is None else self.smoothing * before + (1 - self.smoothing) * mean
        self._losses.append(losses.float().cpu())
        self._sigmas.append(sigmas.float().cpu())
        self._norms.append(norm)
        self._waited, self._samples = self._waited + waited, self._samples + len(losses)
        if step % self.every == 0:
            self.write(
                step, {**self._summary(), **{f"rate/{name}": rate for name, rate in rates.items()}, "skipped": skipped}
            )
            self._begin()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers at once, for example a validation loss."""
        for writer in self.writers:
            writer.write(step, values)

    def close(self) -> None:
        """Close all writers."""
        for writer in self.writers:
            writer.close()

    def _summary(self) -> dict[str, float]:
        losses, sigmas = torch.cat(self._losses), torch.cat(self._sigmas)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        values = {
            "loss": float(losses.mean()),
            "loss/smoothed": float("nan") if self.smoothed is None else self.smoothed,
            "gradient_norm": sum(self._norms) / len(self._norms),
            "samples_per_second": self._samples / seconds,
            "data_wait_share": self._waited / seconds,
            "peak_memory_gib": _peak_memory(),
        }
        for gauge in self.gauges:
            values |= gauge()
        return {**values, **by_level(losses, sigmas)}


def by_level(losses: torch.Tensor, sigmas: torch.Tensor) -> dict[str, float]:
    """Return the mean loss in each tenth of the noise levels.

    Args:
        losses (`torch.Tensor` of shape `(samples,)`): Losses.
        sigmas (`torch.Tensor` of shape `(samples,)`): Their noise levels in [0, 1].

    Returns:
        `dict[str, float]`: by `"loss/sigma_0.3-0.4"` and the like; NaN where there is no sample.
    """
    places = (sigmas * DECILES).long().clamp(0, DECILES - 1)
    return {
        f"loss/sigma_{place / DECILES:.1f}-{(place + 1) / DECILES:.1f}": float(losses[places == place].mean())
        for place in range(DECILES)
    }


def _peak_memory() -> float:
    """Return the most memory in use so far, in GiB: of the accelerator if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line that was cut off in the middle.
        return 2**62
