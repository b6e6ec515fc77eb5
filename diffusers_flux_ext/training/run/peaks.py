"""The peak memory of each stage of a run, beside what was predicted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ...checkpoints.writing import written_at_once
from ..memory import MemoryPlan
from ..memory.plan import GB


class StagePeaks:
    """Measures stages of a run on a GPU of CUDA. Elsewhere nothing counts what tensors take, and it says so.

    Args:
        device (`torch.device`): Where the run is.
        plan (`MemoryPlan`, *optional*): The plan that predicted peaks.

    Attributes:
        measured (`dict[str, int]`): Largest bytes of tensors on the GPU, by stage.
    """

    def __init__(self, device: torch.device, plan: MemoryPlan | None) -> None:
        self._device = device
        self._predicted: Mapping[str, int] = (
            {} if plan is None else {"encoding": plan.encoding, "training": plan.training.peak}
        )
        self.measured: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what runs inside this context.

        Args:
            name (`str`): `"encoding"` or `"training"`.
        """
        measures = self._device.type == "cuda"
        if measures:
            torch.cuda.reset_peak_memory_stats(self._device)
        try:
            yield
        finally:
            if measures:
                self.measured[name] = torch.cuda.max_memory_allocated(self._device)

    def describe(self) -> str:
        """Return the peaks in words, a line for each stage."""
        return "\n".join(f"Peak while {name}: {self._measured(name)}{self._expected(name)}" for name in self._stages)

    def write(self, path: Path) -> None:
        """Write the peaks in bytes as JSON, if there are any: `null` for what was not measured or predicted.

        A stage that did not run this time keeps what was written before.

        Args:
            path (`Path`): The file.
        """
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        peaks = {
            name: {"predicted": self._predicted.get(name), "measured": self.measured.get(name)}
            for name in self._stages
            if name in self.measured or name not in before
        }
        if peaks:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_at_once(path) as temporary:
                temporary.write_text(json.dumps({**before, **peaks}, indent=2) + "\n", encoding="utf-8")

    @property
    def _stages(self) -> list[str]:
        return [name for name in ("encoding", "training") if name in self._predicted or name in self.measured]

    def _measured(self, name: str) -> str:
        if name in self.measured:
            return f"{self.measured[name] / GB:.1f} GB measured"
        return "not run" if self._device.type == "cuda" else f"not measured on {self._device.type}"

    def _expected(self, name: str) -> str:
        return f", {self._predicted[name] / GB:.1f} GB predicted" if name in self._predicted else ""
