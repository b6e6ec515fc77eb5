"""Routes about the server: health, metrics, what it offers, what a job is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from ..errors import RequestError
from .answers import Error, Health, Uploaded
from .reading import service_of


router = APIRouter(prefix="/api", tags=["server"])

BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": dict.fromkeys(("image/png", "image/jpeg", "image/webp", "application/octet-stream"), BINARY),
    }
}


@router.get("/health")
def health(request: Request) -> Health:
    """Tell whether the server takes jobs in."""
    service = service_of(request)
    return Health(
        status="stopping" if service.stopping else "ok",
        version=request.app.version,
        queued=len(service.queue),
        running=service.running,
        limit=service.limits.queue,
    )


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> PlainTextResponse:
    """Return numbers in Prometheus' text format."""
    return PlainTextResponse(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/schema")
def schema(request: Request) -> dict[str, Any]:
    """Return the JSON schema of a job."""
    found: dict[str, Any] = request.app.state.job_schema
    return found


@router.get("/options")
def options(request: Request) -> dict[str, Any]:
    """Return what jobs may name, and the limits."""
    found: dict[str, Any] = request.app.state.options
    return found


@router.post(
    "/uploads",
    status_code=201,
    responses={status: {"model": Error} for status in (408, 413, 415, 422)},
    openapi_extra=UPLOAD_BODY,
)
async def upload(request: Request) -> Uploaded:
    """Send an image or a tensor, for jobs to name."""
    data = await request.body()
    if not data:
        raise RequestError(422, "The body is empty; expected an image or a tensor.")
    name, found = await run_in_threadpool(service_of(request).upload, data, request.headers.get("content-type"))
    return Uploaded(id=name, kind=found.kind, width=found.width, height=found.height, bytes=found.bytes)
