"""The application: routes, guard, errors, and what starts and stops with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .api import info, jobs, openai, page
from .errors import RequestError
from .guard import Guard
from .service import JobService
from .workers import Workers


DESCRIPTION = "Draws images with FLUX.1 and the methods of diffusers_flux_ext, one job after the other."


def create_app(
    service: JobService,
    job_schema: Mapping[str, Any],
    options: Mapping[str, Any],
    version: str,
    tokens: Sequence[str] = (),
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """Make the application of a server.

    Args:
        service (`JobService`): The jobs. They are drawn while the application runs.
        job_schema (`Mapping[str, Any]`): The JSON schema of a job.
        options (`Mapping[str, Any]`): What jobs may name.
        version (`str`): The version of the package.
        tokens (`Sequence[str]`, *optional*): Tokens, one of which each request needs; none needs none.
        hosts (`Collection[str]`, *optional*): Names of this server in the `Host` header; `None` takes any.

    Returns:
        `FastAPI`
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.restore()
        workers = Workers(service)
        workers.start()
        yield
        service.stop()
        workers.join()
        service.store.close()

    # The interactive documentation would load scripts of other sites.
    app = FastAPI(
        title="diffusers_flux_ext", description=DESCRIPTION, version=version, lifespan=lifespan, docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    app.state.service, app.state.tokens, app.state.salt = service, list(tokens), secrets.token_bytes(16)
    app.state.job_schema, app.state.options, app.state.static = job_schema, options, page.static_files()
    for module in (info, jobs, openai, page):
        app.include_router(module.router)
    _handle_errors(app)
    _describe_jobs(app, job_schema)
    app.add_middleware(Guard, limits=service.limits, tokens=tokens, hosts=hosts, count=_counter(service))
    return app


def _counter(service: JobService) -> Any:
    def count(method: str, status: int) -> None:
        service.metrics.requests.labels(method, str(status)).inc()

    return count


def _handle_errors(app: FastAPI) -> None:
    """Answer all errors in one shape, and none with what happened inside."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.to_dict(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = [(_field(found["loc"]), found["msg"]) for found in error.errors()]
        message = "; ".join(f"{field}: {text}" for field, text in problems)
        return JSONResponse(RequestError(422, message, problems).to_dict(), 422)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        return JSONResponse(RequestError(error.status_code, f"{error.detail}.").to_dict(), error.status_code, headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse(RequestError(500, "The server failed; its log says why.").to_dict(), 500)


def _field(place: Sequence[Any]) -> str:
    """Return where in a request, without the part that FastAPI names first."""
    return ".".join(map(str, place[1:] if len(place) > 1 else place))


def _describe_jobs(app: FastAPI, job_schema: Mapping[str, Any]) -> None:
    """Put the schema of a job into that of the application."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        found = made()
        schemas = found.setdefault("components", {}).setdefault("schemas", {})
        if "Job" not in schemas:
            moved = json.loads(json.dumps(job_schema).replace('"#/$defs/', '"#/components/schemas/job.'))
            schemas |= {f"job.{name}": schema for name, schema in moved.pop("$defs", {}).items()}
            schemas["Job"] = moved
        return found

    app.openapi = openapi  # type: ignore[method-assign]
