"""One process that hands out jobs to many cards, simulated from what a job costs it."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass


HEARTBEAT_SECONDS = 20.0


@dataclass(frozen=True)
class Costs:
    """What a job costs the process that hands out and writes: seconds of its processor, bytes, and file operations."""

    driver_seconds: float
    read_seconds: float
    job_bytes: float
    claim_seconds: float
    claim_bytes: float
    sent_bytes: int
    result_bytes: int
    file_operations: float

    def operations(self, cards: int, rate: float) -> float:
        """File operations per second: those of jobs, and the heartbeats of claims."""
        return rate * self.file_operations + cards / HEARTBEAT_SECONDS

    def memory(self, cards: int, jobs: int) -> float:
        """Bytes of the list, the claims, and one result for each card that arrives at the worst moment."""
        return jobs * self.job_bytes + cards * (self.claim_bytes + self.result_bytes)

    def rows(self) -> list[tuple[str, str]]:
        """As lines of a table."""
        return [
            ("Ray, the handing-out process, ms for each job", f"{1000 * self.driver_seconds:.1f}"),
            ("reading a job of a list, ms", f"{1000 * self.read_seconds:.2f}"),
            ("a job of a list in memory, KiB", f"{self.job_bytes / 1024:.1f}"),
            ("taking a claim, ms", f"{1000 * self.claim_seconds:.2f}"),
            ("a claim in memory, KiB (one thread, one open file)", f"{self.claim_bytes / 1024:.1f}"),
            ("opens, creations, renames and removals of files for each job", f"{self.file_operations:.0f}"),
            ("a job as it is sent, bytes, without input images", str(self.sent_bytes)),
            ("a result of 1024 x 1024 pixels, PNG, MB", f"{self.result_bytes / 1e6:.2f}"),
        ]


@dataclass(frozen=True)
class Load:
    """What a simulation found: jobs per second, and the shares of time at work."""

    rate: float
    cards_busy: float
    driver_busy: float


def simulate(cards: int, job_seconds: float, driver_seconds: float, jobs: int, spread: float = 0.2) -> Load:
    """Simulate one process that serves cards one after another.

    Each result waits until the process has written those before it; its card waits, too, and gets the next job then.

    Args:
        cards (`int`): How many cards there are.
        job_seconds (`float`): Mean seconds of a job on a card; each takes up to `spread` more or less.
        driver_seconds (`float`): Seconds of the process for each job.
        jobs (`int`): How many jobs are drawn.
        spread (`float`): Share of the mean.

    Returns:
        `Load`
    """
    rng = random.Random(0)

    def length() -> float:
        return job_seconds * rng.uniform(1 - spread, 1 + spread)

    # Cards do not all begin at once.
    ready = [rng.uniform(0, job_seconds) for _ in range(cards)]
    heapq.heapify(ready)
    free, work = 0.0, 0.0
    for _ in range(jobs):
        free = max(free, heapq.heappop(ready)) + driver_seconds
        drawn = length()
        work += drawn
        heapq.heappush(ready, free + drawn)
    return Load(jobs / free, min(work / (cards * free), 1.0), jobs * driver_seconds / free)
