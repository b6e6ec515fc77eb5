"""What every request passes first: host, origin, token, size, pace; and the headers of every answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Collection, Sequence
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError
from .limits import Limits


# A body that comes byte by byte is given up after so many of the longest pauses.
LONGEST_BODY = 10
COOKIE = "flux_ext_session"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# What may be asked without a token: a page sets its cookie from the one in its address, and monitors ask for health.
OPEN = ("/api/health",)


class Guard:
    """Refuses requests before anything reads them.

    Args:
        app (`ASGIApp`): What answers the others.
        limits (`Limits`): Sizes and pauses.
        tokens (`Sequence[str]`): Tokens, one of which is needed; none needs none.
        hosts (`Collection[str]`, *optional*): Names of this server in the `Host` header; `None` takes any.
        count (`Callable[[str, int], None]`): Told method and status of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        tokens: Sequence[str],
        hosts: Collection[str] | None,
        count: Callable[[str, int], None],
    ) -> None:
        self._app, self._limits, self._count = app, limits, count
        self._tokens = [token.encode() for token in tokens]
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        # There are no web sockets.
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(_known_method(scope["method"]), message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(scope, receive), send_with_headers)
        except RequestError as error:
            if not started:
                response = JSONResponse(error.to_dict(), error.status, error.headers)
                await response(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self._hosts is not None and re.sub(r":\d*$", "", host) not in self._hosts:
            message = "The Host header names another server. Start this one with --allow-host NAME for a further name."
            raise RequestError(421, message)
        origin = headers.get("origin")
        # Another site's page must not reach a server that its visitor runs.
        if origin is not None and re.sub("^https?://", "", origin.lower()) != host:
            raise RequestError(403, "Requests of other sites' pages are refused.")
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] not in ("GET", "HEAD"):
            raise RequestError(403, "Requests of other sites' pages are refused.")
        scope.setdefault("state", {})["token"] = self._token(scope, headers)

    def _token(self, scope: Scope, headers: Headers) -> int | None:
        """Return the index of the request's token, or `None` if none is needed."""
        if not self._tokens or scope["path"] in OPEN or (scope["path"] == "/" and b"token=" in scope["query_string"]):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip() if kind.lower() == "bearer" else ""
        session = _cookie(headers)
        for index, token in enumerate(self._tokens):
            if _same(sent, token.decode()) or _same(session, session_of(token.decode())):
                return index
        raise RequestError(
            401,
            "A token is needed: send `Authorization: Bearer TOKEN`, or open `/?token=TOKEN` in a browser.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        most = self._limits.upload_bytes if scope["path"] == "/api/uploads" else self._limits.body_bytes
        length = Headers(scope=scope).get("content-length", "")
        too_large = RequestError(413, f"The request's body is too large; at most {most:,} bytes are accepted.")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        size, complete = 0, False
        end = asyncio.get_running_loop().time() + LONGEST_BODY * self._limits.idle_seconds

        async def receive_limited() -> Message:
            nonlocal size, complete
            if complete:
                # Only the end of the connection is waited for.
                return await receive()
            try:
                left = end - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), min(left, self._limits.idle_seconds))
            except TimeoutError:
                raise RequestError(408, "The request's body did not arrive in time.") from None
            size += len(message.get("body", b""))
            if size > most:
                raise too_large
            complete = not message.get("more_body", False)
            return message

        return receive_limited


def session_of(token: str) -> str:
    """Return what a browser keeps in place of a token."""
    return hmac.new(token.encode(), b"flux-ext session", hashlib.sha256).hexdigest()


def find_token(tokens: Sequence[str], given: str) -> str | None:
    """Return the token that is given, or `None` if it is none of a server's."""
    return next((token for token in tokens if _same(given, token)), None)


def _same(given: str, expected: str) -> bool:
    """Compare in a time that does not depend on the place of the first difference."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _known_method(method: str) -> str:
    return method if method in ("DELETE", "GET", "HEAD", "POST") else "other"
