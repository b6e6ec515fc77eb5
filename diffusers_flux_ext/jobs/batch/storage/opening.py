"""From a path or a URL to a store."""

from __future__ import annotations

import os
from pathlib import Path

from .local import LocalStore
from .remote import RemoteStore
from .store import Store


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a text is a URL, such as `s3://bucket/folder`, and not a path."""
    return "://" in os.fspath(place)


def located(place: str | os.PathLike[str]) -> Path | RemoteStore:
    """Return the path of a local folder or file, and the store of any other one.

    Args:
        place (`str` or `os.PathLike`): A path, or a URL that fsspec knows. `file://` is a path as well.

    Returns:
        `Path` or `RemoteStore`

    Raises:
        ValueError: if the URL is of an unknown kind, or its package is not installed.
    """
    if not is_url(place):
        return Path(place)
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    url = os.fspath(place)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"`{url}` cannot be opened: {error}") from error
    return Path(path) if isinstance(filesystem, LocalFileSystem) else RemoteStore(filesystem, path, url)


def open_store(place: str | os.PathLike[str]) -> Store:
    """Return the store of a folder of results; a local folder is made if it is missing.

    Args:
        place (`str` or `os.PathLike`): A path or a URL.

    Returns:
        `Store`

    Raises:
        ValueError: if the URL is of an unknown kind, or its package is not installed.
        OSError: if the folder cannot be made.
    """
    found = located(place)
    return LocalStore(found) if isinstance(found, Path) else found
