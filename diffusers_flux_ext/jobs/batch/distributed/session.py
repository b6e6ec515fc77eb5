"""Handing jobs to actors until each has one outcome, whatever happens to the actors."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from ...errors import JobError
from ..engine import Outcome, Work
from .crew import Crew, Seat
from .parcel import RemoteError, drawn_of, pack
from .worker import versions


logger = logging.getLogger(__name__)
# Seconds: between looks at the nodes, and until it is said that no worker starts.
LOOK, PATIENCE = 5.0, 60.0
STARTS = 3
LONGEST = 300


class WorkersError(RuntimeError):
    """Workers cannot be started, or would not draw the same pixels."""


class WorkerLost(RuntimeError):
    """A worker ended while it drew a job."""


class Session:
    """One run of an engine.

    Each job is with one actor at a time, and an actor's answer counts only as long as the job is with it. So each job
    has one outcome.

    Args:
        crew (`Crew`): The actors.
        work (`Iterable[Work | None]`): What to draw, see [`~batch.Engine`].
        report (`Callable`): Called with each outcome.
        tries (`int`): How many workers may end, or fail, with a job until it counts as failed.
        timeout (`float`, *optional*): Seconds after which a worker counts as lost.
        nodes (`Callable`): Returns the identifiers of the nodes that are alive.
        on_start (`Callable`, *optional*): Called with each job before an actor draws it.
    """

    def __init__(
        self,
        crew: Crew,
        work: Iterable[Work | None],
        report: Callable[[Outcome], None],
        tries: int,
        timeout: float | None,
        nodes: Callable[[], set[str]],
        on_start: Callable[[Work], None] | None = None,
    ) -> None:
        self.crew, self.report, self.tries, self.timeout = crew, report, tries, timeout
        self._nodes, self._on_start = nodes, on_start
        self._work: Iterator[Work | None] | None = iter(work)
        self._idle: list[Seat] = []
        self._back: deque[Work] = deque()
        self._tried: Counter[str] = Counter()
        self._failed_starts, self._waits = 0, False
        self._looked = self._last_start = time.monotonic()

    def run(self) -> None:
        """Draw everything.

        Raises:
            WorkersError: if no worker can be started, or one has other versions of the packages.
        """
        while True:
            self._hand_out()
            if self._work is None and not self._back and not self.crew.busy:
                return
            answer = self.crew.answer(0 if self._waits else 1.0)
            if answer is not None:
                self._hear(*answer)
            self._look()

    def _hand_out(self) -> None:
        self._waits = False
        while self._idle and (work := self._next()) is not None:
            try:
                parcel = pack(work)
            except (JobError, OSError) as error:
                self.report(Outcome(work, error=error))
                continue
            if self._on_start is not None:
                self._on_start(work)
            self.crew.give(self._idle.pop(), work, parcel)

    def _next(self) -> Work | None:
        if self._back:
            return self._back.popleft()
        if self._work is None:
            return None
        try:
            work = next(self._work)
        except StopIteration:
            self._work = None
            return None
        self._waits = work is None
        return work

    def _hear(self, seat: Seat, future: Future[Any]) -> None:
        try:
            answer = future.result()
        except Exception as error:
            # Whatever Ray raises: the actor, its node or its answer is gone, or it could not start.
            self._lose(seat, " ".join(str(error).split())[:LONGEST])
            return
        if seat.node is None:
            self._welcome(seat, answer)
        else:
            self._receive(seat, answer)

    def _welcome(self, seat: Seat, about: dict[str, Any]) -> None:
        seat.node, seat.place = about["node"], f"process {about['process']} of {about['host']}"
        ours, theirs = versions(), about["versions"]
        if ours != theirs:
            raise WorkersError(
                f"{seat.place} has other versions, which may draw other pixels: got {theirs}, expected {ours}. "
                "Install the same ones on all machines."
            )
        self._failed_starts, self._last_start = 0, time.monotonic()
        self._idle.append(seat)

    def _receive(self, seat: Seat, answer: dict[str, Any]) -> None:
        work, seat.work = seat.work, None
        if work is None:
            return
        if answer.get("broken"):
            # An accelerator that reported an error fails in this process from now on.
            self._replace(seat)
        else:
            self._idle.append(seat)
        try:
            outcome = Outcome(work, drawn_of(answer))
        except JobError as error:
            outcome = Outcome(work, error=error)
        except RemoteError as error:
            self._retry(work, error)
            return
        self.report(outcome)

    def _retry(self, work: Work, error: Exception) -> None:
        self._tried[work.name] += 1
        if self._tried[work.name] < self.tries:
            self._back.append(work)
        else:
            self.report(Outcome(work, error=error))

    def _lose(self, seat: Seat, reason: str) -> None:
        work, seat.work = seat.work, None
        self._replace(seat)
        if work is not None:
            times = self._tried[work.name] + 1
            self._retry(work, WorkerLost(f"its workers ended or failed, {times} of them; the last one: {reason}"))
        elif seat.node is None:
            self._failed_starts += 1
            if self._failed_starts >= STARTS * max(len(self.crew.seats), 1):
                raise WorkersError(f"no worker can be started; the last one: {reason}")

    def _replace(self, seat: Seat) -> None:
        if seat in self._idle:
            self._idle.remove(seat)
        self.crew.dismiss(seat)
        self.crew.add()

    def _look(self) -> None:
        """End workers that took too long, and see which nodes are gone: an answer may have been lost with one."""
        now = time.monotonic()
        for seat in self.crew.busy if self.timeout is not None else ():
            if now - seat.since > (self.timeout or 0):
                self._lose(seat, f"{seat.place} took more than {self.timeout:g} seconds")
        if now < self._looked + LOOK:
            return
        self._looked, alive = now, self._nodes()
        for seat in list(self.crew.seats):
            if seat.node is not None and seat.node not in alive:
                self._lose(seat, f"the node of {seat.place} is gone")
        if all(seat.node is None for seat in self.crew.seats) and now > self._last_start + PATIENCE:
            self._last_start = now
            logger.warning("no worker has started for %d seconds: does the cluster have the resources?", PATIENCE)
