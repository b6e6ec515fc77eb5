"""Routes of jobs: submit, follow, cancel, results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from ..errors import RequestError
from ..events import Event, EventLog
from ..records import ID_PATTERN, Record
from ..service import JobService, last_event
from .answers import JOB_BODY, JOB_ERRORS, NOT_FOUND, Accepted, Checked, Jobs, Removed, Shown
from .reading import client_of, read_json, service_of, to_json


router = APIRouter(prefix="/api", tags=["jobs"])

JobId = Annotated[str, Path(pattern=ID_PATTERN, description="The id of a job.")]
# The last event of a job that is not followed any more, as after a restart.
END = "end"


@router.post("/check", responses=JOB_ERRORS, openapi_extra=JOB_BODY)
async def check(request: Request) -> Checked:
    """Check a job without drawing it."""
    await run_in_threadpool(service_of(request).check, await read_json(request))
    return Checked(ok=True)


@router.post("/jobs", status_code=202, responses=JOB_ERRORS, openapi_extra=JOB_BODY)
async def submit(request: Request) -> Accepted:
    """Submit a job, which waits for its turn."""
    service = service_of(request)
    record = await run_in_threadpool(service.submit, await read_json(request), client_of(request))
    return Accepted(**{name: service.public(record)[name] for name in ("id", "status", "position", "url")})


@router.get("/jobs")
def list_jobs(
    request: Request,
    status: Literal["queued", "running", "done", "failed", "cancelled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
) -> Jobs:
    """List jobs, the newest first; `before` is the last id of the former page."""
    service = service_of(request)
    return Jobs(jobs=[Shown(**service.public(record)) for record in service.newest(limit, before, status)])


@router.get("/jobs/{job}", responses=NOT_FOUND)
def show(request: Request, job: JobId) -> Shown:
    """Show a job."""
    service = service_of(request)
    return Shown(**service.public(service.get(job)))


@router.delete("/jobs/{job}", responses=NOT_FOUND)
def cancel(request: Request, response: Response, job: JobId) -> Removed:
    """Cancel a job that waits or is drawn, which stops within one step; remove a finished one."""
    status = service_of(request).cancel(job)
    # A job that is drawn goes on until its step ends.
    response.status_code = 202 if status == "running" else 200
    return Removed(id=job, status=status)


@router.get("/jobs/{job}/images/{index}", responses=NOT_FOUND, response_class=FileResponse)
def image(request: Request, job: JobId, index: Annotated[int, Path(ge=0, le=10_000)]) -> FileResponse:
    """Send an image, with its job in the metadata."""
    service = service_of(request)
    path = service.store.image(service.get(job), index)
    if path is None:
        raise RequestError(404, f"The job has no image {index}.")
    return FileResponse(path, headers={"Cache-Control": "private, max-age=86400"})


@router.get("/jobs/{job}/events", responses=NOT_FOUND, response_class=StreamingResponse)
async def events(
    request: Request, job: JobId, last_event_id: Annotated[str | None, Header(max_length=100)] = None
) -> Response:
    """Follow a job by server-sent events; `Last-Event-ID` goes on after an interruption."""
    service = service_of(request)
    live = service.live.get(job)
    if live is None:
        if last_event_id is not None and last_event_id.endswith(END):
            # The only answer after which browsers do not connect again.
            return Response(status_code=204)
        return _stream(_ended(service.get(job)))
    service.check_listeners()
    return _stream(_followed(service, live.log, last_event_id))


async def _ended(record: Record) -> AsyncIterator[bytes]:
    yield _format(Event(END, record.status, last_event(record)))


async def _followed(service: JobService, log: EventLog, last: str | None) -> AsyncIterator[bytes]:
    with service.listening():
        async for event in log.listen(last):
            yield b": still here\n\n" if event is None else _format(event)


def _format(event: Event) -> bytes:
    return format_sse_event(data_str=to_json(event.data), event=event.name, id=event.id)


def _stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    # Proxies would collect events otherwise.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
