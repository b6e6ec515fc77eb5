"""Reading a list of jobs: JSON lines, YAML, or a folder of files."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .storage import RemoteStore, located


STDIN = "-"
LINES = (".jsonl", ".ndjson")
DOCUMENTS = (".json", ".yaml", ".yml")
LONGEST = 200


class JobListError(ValueError):
    """A list of jobs cannot be read; the message names it."""


@dataclass(frozen=True)
class Entry:
    """An entry of a list, as it was written.

    Attributes:
        place (`str`): Where it stands, such as `"jobs.jsonl, line 3"`.
        content (`Any`): What is there: the job's entries, if it is a job.
        base (`Path` or `str`): The folder that its files are relative to, or its URL.
        problem (`str`, *optional*): Why it cannot be read.
    """

    place: str
    content: Any
    base: Path | str
    problem: str | None = None


def read_entries(source: str | os.PathLike[str]) -> list[Entry]:
    """Read a list of jobs without checking them.

    Args:
        source (`str` or `os.PathLike`):
            A file of JSON lines (`.jsonl`), a YAML or JSON file with a list of jobs or with one, a folder of such YAML
            and JSON files, the URL of either that fsspec knows, or `"-"` for the standard input.

    Returns:
        `list[Entry]`: in order; a line or a file that cannot be read is an entry with its problem.

    Raises:
        JobListError: if the list is not there, is of another kind, or is empty.
    """
    if os.fspath(source) == STDIN:
        entries = list(_of_text(sys.stdin.read(), "the standard input", Path.cwd()))
    else:
        place = _located(source)
        entries = list(_of_url(place) if isinstance(place, RemoteStore) else _of_path(place))
    if not entries:
        raise JobListError(f"`{source}` holds no job.")
    return entries


def _located(source: str | os.PathLike[str]) -> Path | RemoteStore:
    try:
        return located(source)
    except ValueError as error:
        raise JobListError(str(error)) from None


def _of_path(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file() and _is_kind(each.name, DOCUMENTS))
    elif not path.is_file():
        raise JobListError(f"There is no file or folder `{path}`. Give a list of jobs, a folder of jobs, or `-`.")
    else:
        _check_kind(path.name)
        files = [path]
    for each in files:
        yield from _of_file(each.read_bytes, each.name, each.parent)


def _of_url(store: RemoteStore) -> Iterator[Entry]:
    """Read the list at a URL: that of a file or of a folder."""
    try:
        if store.is_file():
            store, name = store.parent()
            _check_kind(name)
            names = [name]
        else:
            names = [name for name in store.names() if _is_kind(name, DOCUMENTS)]
    except OSError as error:
        raise JobListError(str(error)) from None
    if not names:
        raise JobListError(f"There is no file, and no folder of jobs, `{store.url}`.")
    for each in names:
        yield from _of_file(functools.partial(store.read_now, each), each, store.url)


def _is_kind(name: str, suffixes: tuple[str, ...]) -> bool:
    return Path(name).suffix.lower() in suffixes


def _check_kind(name: str) -> None:
    if not _is_kind(name, (*LINES, *DOCUMENTS)):
        raise JobListError(
            f"`{name}` ends in {Path(name).suffix or 'no suffix'!r}; expected {', '.join((*LINES, *DOCUMENTS))}."
        )


def _of_file(read: Callable[[], bytes | None], name: str, base: Path | str) -> Iterator[Entry]:
    try:
        text = (read() or b"").decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        yield Entry(name, None, base, f"it cannot be read: {_short(error)}")
        return
    yield from (_of_lines if _is_kind(name, LINES) else _of_document)(text, name, base)


def _of_text(text: str, name: str, base: Path | str) -> Iterator[Entry]:
    """Read JSON lines if the first line is one, and YAML otherwise."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        is_lines = isinstance(json.loads(first), Mapping)
    except (ValueError, RecursionError):
        is_lines = False
    yield from _of_lines(text, name, base) if is_lines else _of_document(text, name, base)


def _of_lines(text: str, name: str, base: Path | str) -> Iterator[Entry]:
    # Only line feeds end a line of JSON: `splitlines` would also cut a text at U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            yield _entry(place, json.loads(line), base)
        except (ValueError, RecursionError) as error:
            yield Entry(place, line, base, f"it is not JSON: {_short(error)}")


def _of_document(text: str, name: str, base: Path | str) -> Iterator[Entry]:
    try:
        content = _parse(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        yield Entry(name, text, base, f"it is not YAML or JSON: {_short(error)}")
        return
    if isinstance(content, list):
        for number, each in enumerate(content, 1):
            yield _entry(f"{name}, entry {number}", each, base)
    elif content is not None:
        yield _entry(name, content, base)


def _parse(text: str) -> Any:
    try:
        # A hundred times as fast as YAML, of which it is a part.
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _entry(place: str, content: Any, base: Path | str) -> Entry:
    if not isinstance(content, Mapping):
        return Entry(place, content, base, f"it is {type(content).__name__}; expected a job's entries")
    return Entry(place, content, base)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
