"""Reading requests."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from fastapi import Request

from ..errors import RequestError
from ..service import JobService


CLIENT_HEADER = "X-Client-Id"


def service_of(request: Request) -> JobService:
    """Return the service that answers a request."""
    service: JobService = request.app.state.service
    return service


def client_of(request: Request) -> str:
    """Return whose turn a request takes: by token if there are several, else by header, else by address.

    What is returned can be stored: it tells neither token nor address.
    """
    several = len(request.app.state.tokens) > 1
    if several:
        key = f"token {request.state.token}"
    elif given := request.headers.get(CLIENT_HEADER):
        key = f"id {given}"
    else:
        key = f"address {request.client.host if request.client else ''}"
    return hashlib.blake2b(key.encode(), digest_size=8, key=request.app.state.salt).hexdigest()


async def read_json(request: Request) -> Any:
    """Return the JSON of a request's body.

    Raises:
        RequestError: if it is not said to be JSON, or is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"Send JSON with `Content-Type: application/json`, got {kind or 'no type'!r}.")
    return parse_json(await request.body(), "The body")


def parse_json(data: bytes | str, what: str) -> Any:
    """Parse JSON, without the numbers that JSON does not have.

    Args:
        data (`bytes` or `str`): The text.
        what (`str`): What it is, for messages.

    Raises:
        RequestError: if it is not JSON.
    """
    try:
        found = json.loads(data, parse_constant=_refuse, parse_float=_finite)
        # Escapes may make halves of characters, which cannot be written down.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reasons = {RecursionError: "it is nested too deeply", UnicodeEncodeError: "it holds a half of a character"}
        raise RequestError(400, f"{what} is not JSON: {reasons.get(type(error), error)}") from None
    return found


def to_json(value: Any) -> str:
    """Return JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
