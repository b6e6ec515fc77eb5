"""What routes answer, for the OpenAPI schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Problem(BaseModel):
    """A wrong field."""

    field: str
    message: str


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    field: str | None
    problems: list[Problem]


class Error(BaseModel):
    """The answer to a request that is refused."""

    error: ErrorDetails


class Checked(BaseModel):
    """A job that can be submitted."""

    ok: Literal[True]


class Accepted(BaseModel):
    """A job that waits."""

    id: str
    status: str
    position: int | None
    url: str


class DrawnImage(BaseModel):
    """An image of a job."""

    url: str
    seed: int
    width: int
    height: int


class Shown(BaseModel):
    """A job and what became of it."""

    id: str
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    created: str
    started: str | None
    finished: str | None
    position: int | None
    step: int
    steps: int | None
    error: ErrorDetails | None
    url: str
    images: list[DrawnImage]
    job: dict[str, Any]


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Shown]


class Removed(BaseModel):
    """What became of a job that is not wanted: `running` stops within one step."""

    id: str
    status: Literal["cancelled", "running", "removed"]


class Uploaded(BaseModel):
    """An upload, which jobs name by its id."""

    id: str
    kind: Literal["image", "tensor"]
    width: int | None
    height: int | None
    bytes: int


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ok", "stopping"]
    version: str
    queued: int
    running: int
    limit: int


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error} for status in statuses}


NOT_FOUND = _errors(404)
JOB_ERRORS = _errors(400, 413, 415, 429, 503)
JOB_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}},
    }
}
