"""The threads that draw: one for each model, as a pipeline draws one job at a time."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
from collections.abc import Iterator

from PIL import Image

from .drawing import OnStep, StepLike
from .errors import RequestError
from .records import Status, now
from .service import JobService, Live


logger = logging.getLogger(__name__)

PREVIEW_SIDE = 256
PREVIEW_SECONDS = 0.25
SWEEP_SECONDS = 600.0
UNCLEAR = "The server could not draw this job; its log says why."


class Cancelled(Exception):
    """The client does not want the job any more."""


class Stopping(Exception):
    """The server stops; the job goes on at its next start."""


class TooLong(Exception):
    """The job took longer than a job may."""


class TimedOut(RequestError):
    """What clients are told then."""


class Workers:
    """Threads that take jobs out of the queue.

    Args:
        service (`JobService`): The jobs.
    """

    def __init__(self, service: JobService) -> None:
        self._service = service
        self._swept = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, args=(model,), name=f"draw-{model}", daemon=True)
            for model in service.served.models
        ]

    def start(self) -> None:
        """Begin to draw."""
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float = 30.0) -> None:
        """Wait until the threads have stopped, which they do after the step at hand."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, model: str) -> None:
        while (job := self._service.queue.take(model)) is not None:
            group = [self._service.live[each] for each in (job, *self._alike(model, job))]
            self._service.announce_positions()
            self._run(group)
            self._sweep_now_and_then()

    def _alike(self, model: str, job: str) -> Iterator[str]:
        """Take further jobs that can be drawn in the same call, as many as a batch has; nobody is passed over."""
        service = self._service
        first = service.live[job].record.job
        for _ in range(service.limits.batch - 1):
            other = service.queue.take_alike(
                model, lambda each: service.drawer.can_join(first, service.live[each].record.job)
            )
            if other is None:
                return
            yield other

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._service.sweep()

    def _run(self, group: list[Live]) -> None:
        status, error = self._outcome(group)
        if status == "failed" and len(group) > 1 and not isinstance(error, TimedOut):
            # What is wrong with one of them must not concern the others.
            for live in group:
                if live.record.id in self._service.live:
                    self._run([live])
            return
        for live in group:
            self._settle(live, status, error)

    def _settle(self, live: Live, status: Status | None, error: RequestError | None) -> None:
        if status is None:
            logger.info("Job %s goes on at the next start.", live.record.id)
            return
        try:
            self._service.finish(live, status, error)
        except OSError:
            logger.exception(
                "Job %s could not be written down; it is drawn again after the next start.", live.record.id
            )

    def _outcome(self, group: list[Live]) -> tuple[Status | None, RequestError | None]:
        """Draw jobs in one call; return how they ended and why, or nothing if they go on at the next start."""
        model = group[0].record.model
        try:
            with self._service.room.hold(model):
                self._draw(group)
        except Cancelled:
            return "cancelled", None
        except Stopping:
            return None, None
        except TooLong:
            seconds = self._service.limits.job_seconds
            return "failed", TimedOut(408, f"The job took longer than {seconds:g} s and was stopped.")
        except RequestError as error:
            return "failed", error
        # Whatever a job does, the thread goes on with the next one.
        except Exception:
            logger.exception("Job %s failed.", ", ".join(live.record.id for live in group))
            self._service.room.forget(model)
            return "failed", RequestError(500, UNCLEAR)
        return "done", None

    def _draw(self, group: list[Live]) -> None:
        service, begun = self._service, time.monotonic()
        for live in group:
            record = live.record
            service.metrics.waits.observe(begun - live.since)
            record.status, record.started = "running", now()
            # Written before work starts, so that a job that ends the process is not begun for ever.
            record.attempts += 1
            service.store.save(record)
            live.log.add("started")
        records = [live.record for live in group]
        folders = [service.store.image_folder(record.id) for record in records]
        jobs = [record.job for record in records]
        for record, images in zip(
            records, service.drawer.draw(records[0].model, jobs, folders, self._follow(group, begun)), strict=True
        ):
            record.images = images
            service.took((time.monotonic() - begun) / len(group))
            service.metrics.images.inc(len(images))

    def _follow(self, group: list[Live], begun: float) -> OnStep:
        """Return what is called after each step: it tells listeners, and ends the drawing where it should end."""
        shown = -PREVIEW_SECONDS

        def on_step(info: StepLike) -> None:
            nonlocal shown
            for live in group:
                live.record.step, live.record.steps = info.step, info.total
                live.log.add("step", step=info.step, total=info.total)
            # Each is looked at, since one of several is settled here.
            cancelled = [self._is_cancelled(live, len(group) > 1) for live in group]
            if all(cancelled):
                raise Cancelled
            if self._service.stopping:
                raise Stopping
            elapsed = time.monotonic() - begun
            if elapsed > self._service.limits.job_seconds:
                raise TooLong
            # A preview is made of the first image of a call.
            log = group[0].log
            if log.is_heard and elapsed - shown >= PREVIEW_SECONDS and info.step < info.total:
                shown = elapsed
                log.add("preview", image=_data_url(info.preview()))

        return on_step

    def _is_cancelled(self, live: Live, at_once: bool) -> bool:
        """Whether a job is not wanted; one of several is over at once, while the others are drawn."""
        if live.cancelled.is_set() and at_once:
            self._settle(live, "cancelled", None)
        return live.cancelled.is_set()


def _data_url(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
