"""The threads that draw: one for each model, as a pipeline draws one job at a time."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time

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
            self._service.announce_positions()
            self._run(self._service.live[job])
            self._sweep_now_and_then()

    def _sweep_now_and_then(self) -> None:
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._swept = time.monotonic()
            self._service.sweep()

    def _run(self, live: Live) -> None:
        status, error = self._outcome(live)
        if status is None:
            logger.info("Job %s goes on at the next start.", live.record.id)
            return
        try:
            self._service.finish(live, status, error)
        except OSError:
            logger.exception(
                "Job %s could not be written down; it is drawn again after the next start.", live.record.id
            )

    def _outcome(self, live: Live) -> tuple[Status | None, RequestError | None]:
        """Draw a job; return how it ended and why, or nothing if it goes on at the next start."""
        record = live.record
        try:
            with self._service.room.hold(record.model):
                self._draw(live)
        except Cancelled:
            return "cancelled", None
        except Stopping:
            return None, None
        except TooLong:
            seconds = self._service.limits.job_seconds
            return "failed", RequestError(408, f"The job took longer than {seconds:g} s and was stopped.")
        except RequestError as error:
            return "failed", error
        # Whatever a job does, the thread goes on with the next one.
        except Exception:
            logger.exception("Job %s failed.", record.id)
            self._service.room.forget(record.model)
            return "failed", RequestError(500, UNCLEAR)
        return "done", None

    def _draw(self, live: Live) -> None:
        service, record = self._service, live.record
        begun = time.monotonic()
        service.metrics.waits.observe(begun - live.since)
        record.status, record.started = "running", now()
        # Written before work starts, so that a job that ends the process is not begun for ever.
        record.attempts += 1
        service.store.save(record)
        live.log.add("started")
        on_step = self._follow(live, begun)
        folder = service.store.image_folder(record.id)
        record.images = service.drawer.draw(record.model, record.job, folder, on_step)
        service.took(time.monotonic() - begun)
        service.metrics.images.inc(len(record.images))

    def _follow(self, live: Live, begun: float) -> OnStep:
        """Return what is called after each step: it tells listeners, and ends the drawing where it should end."""
        shown = -PREVIEW_SECONDS

        def on_step(info: StepLike) -> None:
            nonlocal shown
            live.record.step, live.record.steps = info.step, info.total
            live.log.add("step", step=info.step, total=info.total)
            if live.cancelled.is_set():
                raise Cancelled
            if self._service.stopping:
                raise Stopping
            elapsed = time.monotonic() - begun
            if elapsed > self._service.limits.job_seconds:
                raise TooLong
            if live.log.is_heard and elapsed - shown >= PREVIEW_SECONDS and info.step < info.total:
                shown = elapsed
                live.log.add("preview", image=_data_url(info.preview()))

        return on_step


def _data_url(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
