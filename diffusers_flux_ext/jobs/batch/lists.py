"""Reading a list of jobs: JSON lines, YAML, or a folder of files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


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
        base (`Path`): The folder that its files are relative to.
        problem (`str`, *optional*): Why it cannot be read.
    """

    place: str
    content: Any
    base: Path
    problem: str | None = None


def read_entries(source: str | os.PathLike[str]) -> list[Entry]:
    """Read a list of jobs without checking them.

    Args:
        source (`str` or `os.PathLike`):
            A file of JSON lines (`.jsonl`), a YAML or JSON file with a list of jobs or with one, a folder of such YAML
            and JSON files, or `"-"` for the standard input with either.

    Returns:
        `list[Entry]`: in order; a line or a file that cannot be read is an entry with its problem.

    Raises:
        JobListError: if the list is not there, is of another kind, or is empty.
    """
    path = Path(source)
    if os.fspath(source) == STDIN:
        entries = list(_of_text(sys.stdin.read(), "the standard input", Path.cwd()))
    elif path.is_dir():
        entries = [entry for file in _documents(path) for entry in _of_file(file, file.name)]
    elif not path.is_file():
        raise JobListError(f"There is no file or folder `{path}`. Give a list of jobs, a folder of jobs, or `-`.")
    else:
        if path.suffix.lower() not in (*LINES, *DOCUMENTS):
            raise JobListError(
                f"`{path}` ends in {path.suffix or 'no suffix'!r}; expected {', '.join((*LINES, *DOCUMENTS))}."
            )
        entries = list(_of_file(path, path.name))
    if not entries:
        raise JobListError(f"`{source}` holds no job.")
    return entries


def _documents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in DOCUMENTS and path.is_file())


def _of_file(path: Path, name: str) -> Iterator[Entry]:
    base = path.parent
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        yield Entry(name, None, base, f"it cannot be read: {_short(error)}")
        return
    if path.suffix.lower() in LINES:
        yield from _of_lines(text, name, base)
    else:
        yield from _of_document(text, name, base)


def _of_text(text: str, name: str, base: Path) -> Iterator[Entry]:
    """Read JSON lines if the first line is one, and YAML otherwise."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        is_lines = isinstance(json.loads(first), Mapping)
    except (ValueError, RecursionError):
        is_lines = False
    yield from _of_lines(text, name, base) if is_lines else _of_document(text, name, base)


def _of_lines(text: str, name: str, base: Path) -> Iterator[Entry]:
    # Only line feeds end a line of JSON: `splitlines` would also cut a text at U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            yield _entry(place, json.loads(line), base)
        except (ValueError, RecursionError) as error:
            yield Entry(place, line, base, f"it is not JSON: {_short(error)}")


def _of_document(text: str, name: str, base: Path) -> Iterator[Entry]:
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


def _entry(place: str, content: Any, base: Path) -> Entry:
    if not isinstance(content, Mapping):
        return Entry(place, content, base, f"it is {type(content).__name__}; expected a job's entries")
    return Entry(place, content, base)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
