"""Times and peaks of calls on a device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


GIB = 2**30
Call = Callable[[], Any]


@dataclass
class Side:
    """What was measured of one side of a comparison.

    Attributes:
        seconds (`list[float]`): Of each call that counts.
        peak_gib (`float`, *optional*): Most memory that PyTorch had allocated during a call; `None` on a CPU.
        result (`Any`): What the last call returned.
    """

    seconds: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    result: Any = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


class BrokenDeviceError(RuntimeError):
    """The device cannot compute any more in this process."""


class Clock:
    """Times calls by CUDA events, or by the wall clock on other devices.

    Args:
        device (`torch.device`): Where the calls run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until the device has nothing to do."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def empty(self) -> None:
        """Give back memory that nothing uses."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def check(self) -> None:
        """Raise [`BrokenDeviceError`] if an error has left the device in a state in which nothing runs."""
        try:
            torch.zeros(1, device=self.device).item()
        except RuntimeError as error:
            raise BrokenDeviceError(
                f"{self.device} does not compute any more in this process: {reason(error)}. Run the command again: it "
                f"goes on after the row that failed."
            ) from error

    def allocated_gib(self) -> float | None:
        """Return what tensors take on the device now; `None` on a CPU."""
        return torch.cuda.memory_allocated(self.device) / GIB if self.cuda else None

    def seconds(self, call: Call) -> tuple[float, Any]:
        """Run a call and return how long the device and the host took for it together, and its result."""
        self.synchronise()
        if not self.cuda:
            begin = time.perf_counter()
            result = call()
            return time.perf_counter() - begin, result
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000, result

    def peak(self, call: Call) -> tuple[float, float | None, Any]:
        """Run a call and return its seconds, the peak of allocated memory in GiB, and its result."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds, result = self.seconds(call)
        return seconds, torch.cuda.max_memory_allocated(self.device) / GIB if self.cuda else None, result

    def sides(
        self, calls: Mapping[str, Call], repeats: int, warm_up: int = 1
    ) -> tuple[dict[str, Side], dict[str, str]]:
        """Time several calls in turns, so that a drift of the clock rate meets all of them.

        Args:
            calls (`Mapping[str, Callable]`): The sides by name.
            repeats (`int`): Calls of each side that count.
            warm_up (`int`, defaults to 1): Calls of each side that do not.

        Returns:
            `tuple[dict[str, Side], dict[str, str]]`: what was measured, and why the other sides could not run.
        """
        found, failed = {name: Side() for name in calls}, dict[str, str]()
        for repeat in range(-warm_up, repeats):
            for name in list(found)[:: 1 if repeat % 2 else -1]:
                try:
                    seconds, peak, result = self.peak(calls[name])
                except Exception as error:  # whatever a kernel or a library raises; the other sides go on
                    failed[name] = reason(error)
                    del found[name]
                    self.empty()
                    continue
                side = found[name]
                side.result = result
                if repeat >= 0:
                    side.seconds.append(seconds)
                    side.peak_gib = None if peak is None else max(peak, side.peak_gib or 0.0)
        return found, failed


def reason(error: BaseException) -> str:
    """Return an error as one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
