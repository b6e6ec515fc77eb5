"""Where the files of a data set may lie."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ....checkpoints.messages import shorten


MAX_DOWNLOAD = 256 * 2**20
"""Bytes that a URL may return."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_TRIES, _SECONDS = 3, 30


@dataclass(frozen=True)
class FolderAccess:
    """Opens the files of one folder, and nothing else unless it is allowed.

    Args:
        base (`str`): The folder that paths are relative to.
        allow_outside (`bool`, defaults to `False`):
            Whether absolute paths, `..` and links may lead out of the folder.
        allow_urls (`bool`, defaults to `False`): Whether `http://` and `https://` are fetched.
    """

    base: str
    allow_outside: bool = False
    allow_urls: bool = False

    def path(self, reference: str) -> Path:
        """Return the path of a file.

        Args:
            reference (`str`): The path as it is written down.

        Returns:
            `Path`: with all links followed.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a path, or leads out of the folder.
        """
        if not reference or "\0" in reference:
            raise ValueError(f"{reference!r} is not the path of a file.")
        base = Path(os.path.realpath(self.base))
        path = Path(os.path.realpath(base / reference))
        if not self.allow_outside and not path.is_relative_to(base):
            raise ValueError(
                f"`{shorten(reference)}` leads out of the folder `{self.base}`. Move the file into the folder, or set "
                f"`allow_outside=True` if you trust whoever wrote the path."
            )
        if not path.is_file():
            hint = " Write paths with `/` instead of backslashes." if "\\" in reference else ""
            raise FileNotFoundError(f"There is no file `{shorten(reference)}` in `{self.base}`.{hint}")
        return path

    def open(self, reference: str, limit: int | None = None) -> bytes:
        """Read a file or its beginning, or fetch a URL where that is allowed; raise the errors of [`path`]."""
        if _SCHEME.match(reference):
            self._check_url(reference)
            return fetch_url(reference)
        with self.path(reference).open("rb") as file:
            return file.read(limit)

    def stamp(self, reference: str) -> str:
        """Return size and time of a file; of a URL, itself. Raise the errors of [`path`]."""
        if _SCHEME.match(reference):
            self._check_url(reference)
            return reference
        return file_stamp(self.path(reference))

    def _check_url(self, reference: str) -> None:
        if not reference.startswith(("http://", "https://")):
            raise ValueError(f"`{shorten(reference)}` is neither a path nor an http(s) URL.")
        if not self.allow_urls:
            raise ValueError(
                f"`{shorten(reference)}` is a URL, which is not fetched. Download the file into `{self.base}`, or set "
                f"`allow_urls=True`."
            )


def file_stamp(path: str | os.PathLike[str]) -> str:
    """Return a file's size and time of change."""
    status = os.stat(path)
    return f"{status.st_size}-{status.st_mtime_ns}"


def fetch_url(url: str, limit: int = MAX_DOWNLOAD) -> bytes:
    """Fetch a URL, with three tries of 30 seconds.

    Args:
        url (`str`): An http(s) URL.
        limit (`int`): Bytes that it may return.

    Returns:
        `bytes`

    Raises:
        FileNotFoundError: if it cannot be fetched.
        ValueError: if it is longer than the limit.
    """
    for attempt in range(_TRIES):
        try:
            with urlopen(Request(url), timeout=_SECONDS) as response:
                content: bytes = response.read(limit + 1)
            break
        except (HTTPError, URLError, TimeoutError, ConnectionError) as error:
            gone = isinstance(error, HTTPError) and error.code < 500
            if gone or attempt == _TRIES - 1:
                raise FileNotFoundError(f"`{shorten(url)}` could not be fetched: {error}.") from error
            time.sleep(2**attempt)
    if len(content) > limit:
        raise ValueError(f"`{shorten(url)}` returns more than {limit} bytes.")
    return content
