"""The page and its files, from a list that is made when the server starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from ..errors import RequestError
from ..guard import COOKIE, find_token, session_of


router = APIRouter(include_in_schema=False)

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webp": "image/webp",
}
INDEX = "index.html"


@dataclass(frozen=True)
class StaticFile:
    """A file of the page."""

    data: bytes
    media_type: str
    tag: str


def static_files(folder: Traversable | None = None) -> dict[str, StaticFile]:
    """Return the page's files by their paths below a folder; no other file is ever sent.

    Args:
        folder (`Traversable`, *optional*): The folder; that of the package by default.

    Returns:
        `dict[str, StaticFile]`
    """
    return dict(_below(folder or files(__package__.rpartition(".")[0]) / "static", ""))


def _below(folder: Traversable, prefix: str) -> list[tuple[str, StaticFile]]:
    found: list[tuple[str, StaticFile]] = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            found += _below(entry, f"{prefix}{entry.name}/")
        elif (kind := TYPES.get(f".{entry.name.rpartition('.')[2]}")) is not None:
            data = entry.read_bytes()
            found.append(
                (f"{prefix}{entry.name}", StaticFile(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"'))
            )
    return found


@router.get("/")
def page(request: Request, token: str | None = None) -> Response:
    """Send the page; a token in the address becomes a cookie and leaves the address."""
    if token is None:
        return _send(request, INDEX)
    found = find_token(request.app.state.tokens, token)
    if found is None and request.app.state.tokens:
        raise RequestError(401, "The token in the address is not one of this server's.")
    response = RedirectResponse("/", status_code=303, headers={"Cache-Control": "no-store"})
    if found is not None:
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, session_of(found), httponly=True, samesite="strict", secure=secure, path="/")
    return response


@router.get("/static/{file:path}")
def static(request: Request, file: str) -> Response:
    """Send a file of the page."""
    return _send(request, file)


def _send(request: Request, name: str) -> Response:
    offered: Mapping[str, StaticFile] = request.app.state.static
    file = offered.get(name)
    if file is None:
        raise RequestError(404, "There is no such file.")
    # Files keep their names in new versions, so a browser asks each time, which costs a few bytes.
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)
