"""Errors of requests, all of one shape, which OpenAI's clients read as well."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "too_large_error",
    415: "invalid_request_error",
    421: "permission_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
# Folders before a name, as messages of libraries quote them.
_FOLDERS = re.compile(r"(?<![\w:/.])(?:~|\.{1,2})?/(?:[^\s/`'\":]+/)+")


class RequestError(Exception):
    """A request that is refused.

    Args:
        status (`int`): The status of HTTP, 400 or above.
        message (`str`): What is wrong and what to do.
        problems (`Sequence[tuple[str, str]]`, *optional*): Wrong fields, each with its message.
        headers (`Mapping[str, str]`, *optional*): Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        problems: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.problems = list(problems)
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": describe_error(self.message, self.status, self.problems)}


def wrong_field(field: str, message: str, status: int = 422) -> RequestError:
    """Return the error of one field of a request."""
    return RequestError(status, f"{field}: {message}", [(field, message)])


def describe_error(message: str, status: int, problems: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Describe an error as an answer or a record does.

    Args:
        message (`str`): What is wrong.
        status (`int`): The status of HTTP that names its type.
        problems (`Sequence[tuple[str, str]]`, *optional*): Wrong fields, each with its message.

    Returns:
        `dict[str, Any]`
    """
    listed = [{"field": field, "message": without_folders(text)} for field, text in problems]
    return {
        "message": without_folders(message),
        "type": TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "field": listed[0]["field"] if listed else None,
        "problems": listed,
    }


def without_folders(message: str) -> str:
    """Return a message without the folders of files, which are no client's business."""
    return _FOLDERS.sub("", message)
