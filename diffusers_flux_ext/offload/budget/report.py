"""Predicted and measured memory of a pipeline under a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .plan import GIB, text_table


class PeakMeter:
    """Measures the peak of each phase where the device counts memory.

    Args:
        device (`torch.device`): Where the pipeline runs.

    Attributes:
        peaks (`dict[str, int]`): The largest measured peak of each phase, in bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, int] = {}

    @property
    def measures(self) -> bool:
        """Whether the device counts its memory."""
        return self.device.type == "cuda"

    def open(self) -> None:
        """Begin a phase."""
        if self.measures:
            torch.cuda.reset_peak_memory_stats(self.device)

    def close(self, phase: str | None) -> None:
        """Record the peak of the current phase, at its end or while it lasts."""
        if self.measures and phase is not None:
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peaks[phase] = max(peak, self.peaks.get(phase, 0))

    def empty_cache(self) -> None:
        """Free the memory of evicted weights: it belongs to the side stream, and results are made on another."""
        if self.measures:
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class MemoryReport:
    """Peaks of the phases in GiB.

    Attributes:
        device (`str`): Where the pipeline runs.
        budget_gib (`float`): The budget.
        predicted (`dict[str, float]`): Predicted peaks.
        measured (`dict[str, float]`): Measured peaks of the phases that ran; empty without a GPU.
        host_predicted (`float`): Predicted host memory of the weights.
        host_measured (`float`, *optional*): Peak resident memory of the whole process, where the system reports it.
    """

    device: str
    budget_gib: float
    predicted: dict[str, float]
    measured: dict[str, float]
    host_predicted: float
    host_measured: float | None

    @classmethod
    def of(cls, budget: Any) -> MemoryReport:
        """Make the report of a [`VRAMBudget`]."""
        budget.meter.close(budget.phase)
        return cls(
            device=str(budget.device),
            budget_gib=budget.plan.budget_gib,
            predicted={phase.name: phase.peak / GIB for phase in budget.plan.phases},
            measured={name: peak / GIB for name, peak in budget.meter.peaks.items()},
            host_predicted=budget.plan.host_gib,
            host_measured=_host_peak_gib(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        rows: list[Any] = [("phase", "predicted GiB", "measured GiB")]
        for name, value in self.predicted.items():
            measured = f"{self.measured[name]:.2f}" if name in self.measured else "-"
            rows.append((name, f"{value:.2f}", measured))
        host = "unknown" if self.host_measured is None else f"{self.host_measured:.2f} GiB"
        lines = [f"Budget {self.budget_gib:g} GiB on {self.device}."]
        if not self.measured:
            lines.append("Predicted only: no phase has run on a GPU that counts its memory.")
        lines += ["", *text_table(rows), ""]
        lines.append(
            f"Host memory: {self.host_predicted:.2f} GiB of weights predicted; the process held {host} at most."
        )
        return "\n".join(lines)


def _host_peak_gib() -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[0]) * 1024 / GIB if found else None
