"""The jobs of a server: taken in, drawn in turn, kept."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from .checking import check_bounds, check_size
from .drawing import Drawer
from .errors import RequestError
from .events import EventLog
from .limits import Limits
from .metrics import Metrics
from .records import Record, Status, new_id, now
from .room import ModelRoom
from .served import Served
from .store import JobStore
from .uploads import Upload, UploadStore
from .waiting import FairQueue, QueueFull


@dataclass
class Live:
    """A job that is not finished: its record, its events, whether it should stop, and since when it is known."""

    record: Record
    log: EventLog = field(default_factory=EventLog)
    cancelled: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)


class JobService:
    """Takes jobs in, and knows each one's state.

    Args:
        served (`Served`): What clients may name.
        drawer (`Drawer`): Checks and draws.
        store (`JobStore`): Keeps records and images.
        uploads (`UploadStore`): Keeps inputs.
        limits (`Limits`): What is accepted.
        room (`ModelRoom`): Which models stay loaded.
    """

    def __init__(
        self, served: Served, drawer: Drawer, store: JobStore, uploads: UploadStore, limits: Limits, room: ModelRoom
    ) -> None:
        self.served, self.drawer, self.store, self.uploads = served, drawer, store, uploads
        self.limits, self.room = limits, room
        self.queue = FairQueue(limits.queue)
        self.live: dict[str, Live] = {}
        self.metrics = Metrics(lambda: len(self.queue), lambda: self.running, lambda: len(room.loaded))
        self.stopping = False
        self._listeners = 0
        self._seconds: deque[float] = deque([1.0], maxlen=20)

    @property
    def running(self) -> int:
        """How many jobs are drawn now."""
        return sum(live.record.status == "running" for live in list(self.live.values()))

    def restore(self) -> None:
        """Let the jobs wait again that a former process did not finish."""
        for record in self.store.restore():
            live = Live(record)
            self.live[record.id] = live
            if record.model not in self.served.models:
                error = RequestError(422, f"The server does not offer the model {record.model!r} any more.")
                self.finish(live, "failed", error)
            elif record.attempts >= self.limits.attempts:
                message = f"The server stopped {record.attempts} times while it drew this job."
                self.finish(live, "failed", RequestError(500, message))
            else:
                record.status, record.started, record.step = "queued", None, 0
                self._wait(live, beyond=True)
        self.sweep()

    def check(self, job: Any) -> tuple[dict[str, Any], list[str], str, int | None]:
        """Check a job of a client.

        Args:
            job: The job in the client's words.

        Returns:
            `tuple`: the job with its model's defaults, and uploads in place of data; their digests, the model's name,
            and the number of steps.

        Raises:
            RequestError: if anything about it is wrong.
        """
        if not isinstance(job, Mapping):
            raise RequestError(422, f"A job is a JSON object, got {type(job).__name__}.")
        taken, digests = self.uploads.take_in(dict(job))
        check_size(taken, self.limits)
        complete = self.served.complete(taken, self.drawer.arguments(taken))
        check_bounds(complete, self.limits)
        return complete, digests, complete["model"]["path"], self.drawer.check(complete)

    def submit(self, job: Any, client: str) -> Record:
        """Let a job wait for its turn.

        Args:
            job: The job in the client's words.
            client (`str`): Whose turn it takes.

        Returns:
            `Record`

        Raises:
            RequestError: if it is wrong, the queue is full, or the server stops.
        """
        if self.stopping:
            raise RequestError(503, "The server is stopping. Try again later.", headers={"Retry-After": "10"})
        if len(self.queue) >= self.limits.queue:
            raise self._full()
        taken, digests, model, steps = self.check(job)
        live = Live(Record(new_id(), model, client, taken, digests, steps=steps))
        self.live[live.record.id] = live
        try:
            self.store.save(live.record)
            self._wait(live)
        except (OSError, QueueFull) as error:
            del self.live[live.record.id]
            self.store.discard(live.record)
            if isinstance(error, QueueFull):
                raise self._full() from None
            raise RequestError(503, "The server cannot store the job: its disk may be full.") from error
        return live.record

    def _wait(self, live: Live, beyond: bool = False) -> None:
        record = live.record
        self.queue.put(record.id, record.model, record.client, lambda position: _announce(live, position), beyond)

    def announce_positions(self) -> None:
        """Tell those who listen to jobs that wait where these stand now."""
        for live in list(self.live.values()):
            position = self.queue.position(live.record.id) if live.log.is_heard else None
            if position is not None:
                _announce(live, position)

    def _full(self) -> RequestError:
        self.metrics.refused.inc()
        seconds = max(1, math.ceil(sum(self._seconds) / len(self._seconds) / len(self.served.models)))
        message = f"The queue is full: {self.limits.queue} jobs wait. Try again in {seconds} s."
        return RequestError(429, message, headers={"Retry-After": str(seconds)})

    def get(self, job: str) -> Record:
        """Return a job's record.

        Raises:
            RequestError: if there is none of this id.
        """
        live = self.live.get(job)
        record = live.record if live is not None else self.store.read(job)
        if record is None:
            raise RequestError(404, f"There is no job {job}; finished jobs are removed when others need their place.")
        return record

    def public(self, record: Record) -> dict[str, Any]:
        """Return a record as clients see it."""
        return record.public(self.queue.position(record.id))

    def newest(self, count: int, before: str | None, status: str | None) -> list[Record]:
        """Return records, the newest first.

        Args:
            count (`int`): How many at most.
            before (`str`, *optional*): Only those that are older than this id.
            status (`str`, *optional*): Only those of this status.
        """
        waiting = [
            live.record
            for live in list(self.live.values())
            if (before is None or live.record.id < before) and status in (None, live.record.status)
        ]
        finished = list(islice(self.store.newest(before, status), count))
        found = {record.id: record for record in [*finished, *waiting]}
        return [found[job] for job in sorted(found, reverse=True)[:count]]

    def cancel(self, job: str) -> Literal["cancelled", "running", "removed"]:
        """Stop a job, or remove a finished one.

        Returns:
            `str`: what becomes of it: `cancelled`, `running` until the step ends, or `removed`.

        Raises:
            RequestError: if there is none of this id.
        """
        live = self.live.get(job)
        if live is None:
            if not self.store.remove(job):
                raise RequestError(404, f"There is no job {job}.")
            return "removed"
        live.cancelled.set()
        if self.queue.remove(job):
            self.finish(live, "cancelled")
            return "cancelled"
        return "running"

    def finish(self, live: Live, status: Status, error: RequestError | None = None) -> None:
        """Write down how a job ended, and tell its listeners.

        Args:
            live (`Live`): The job.
            status (`str`): `done`, `failed` or `cancelled`.
            error (`RequestError`, *optional*): Why it failed.

        Raises:
            OSError: if it cannot be written; the job is then drawn anew after the next start.
        """
        if live.record.id not in self.live:
            return
        # Clients are told once it is written, so that they can remove a job as soon as it is done.
        ended = None if error is None else error.to_dict()["error"]
        record = replace(live.record, status=status, finished=now(), error=ended)
        try:
            self.store.save(record)
        finally:
            del self.live[record.id]
            # For those who hold the job itself.
            live.record.status, live.record.finished, live.record.error = status, record.finished, ended
            self.metrics.jobs.labels(status).inc()
            live.log.add(status, **last_event(record))

    def check_listeners(self) -> None:
        """Refuse a further listener to events where as many listen as may.

        Raises:
            RequestError: then.
        """
        if self._listeners >= self.limits.streams:
            raise RequestError(429, "Too many connections listen to events.", headers={"Retry-After": "5"})

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count a listener to events during the block."""
        self._listeners += 1
        try:
            yield
        finally:
            self._listeners -= 1

    def took(self, seconds: float) -> None:
        """Remember how long a job took, for what clients are told when the queue is full."""
        self._seconds.append(seconds)
        self.metrics.draws.observe(seconds)

    def upload(self, data: bytes, media_type: str | None) -> tuple[str, Upload]:
        """Keep an upload; those that no job names go first where there is no room.

        Raises:
            RequestError: if it is not accepted.
        """
        if not self.uploads.has_room(len(data)):
            self.sweep(self.limits.unused_seconds / 100)
        return self.uploads.add(data, media_type)

    def sweep(self, unused_seconds: float | None = None) -> None:
        """Remove uploads that no job names.

        Args:
            unused_seconds (`float`, *optional*): How old they are at least; by default what the limits say.
        """
        named = self.store.uploads()
        for live in list(self.live.values()):
            named.update(live.record.uploads)
        self.uploads.sweep(named, self.limits.unused_seconds if unused_seconds is None else unused_seconds)

    def stop(self) -> None:
        """Take no further jobs in; those that run go on at the next start."""
        self.stopping = True
        self.queue.close()
        for live in list(self.live.values()):
            live.log.close()


def last_event(record: Record) -> dict[str, Any]:
    """Return the data of the event that ends a job."""
    if record.status == "done":
        return {"images": record.public_images()}
    return {"error": record.error} if record.status == "failed" else {}


def _announce(live: Live, position: int) -> None:
    live.log.add("queued", position=position)
