"""Help texts from docstrings in Hugging Face's style."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any


_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*)(?: \(.*\))?:(?: (?P<text>.*))?$")
_LINK = re.compile(r"\[`~?(?:\w+\.)*(?P<name>[\w.]+)`\]")


def summary(owner: Any) -> str:
    """Return the first paragraph of a docstring, on one line.

    Args:
        owner (`Any`): A class or a function.

    Returns:
        `str`
    """
    return _plain((inspect.getdoc(owner) or "").partition("\n\n")[0])


def described_arguments(owner: Any) -> dict[str, str]:
    """Return the descriptions of the arguments that a docstring lists under `Args:`.

    Args:
        owner (`Any`): A class or a function.

    Returns:
        `dict[str, str]`: texts by name, each on one line.
    """
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in _listed(inspect.getdoc(owner) or ""):
        entry = _ENTRY.match(line)
        if entry and not line.startswith(" "):
            names = entry["names"].split(", ")
            found |= {name: [entry["text"] or ""] for name in names}
        else:
            for name in names:
                found[name].append(line.strip())
    return {name: _plain(" ".join(filter(None, lines))) for name, lines in found.items()}


def _listed(doc: str) -> Iterator[str]:
    """Return the lines of the arguments, those that begin one without an indent."""
    lines = doc.partition("Args:\n")[2].splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            return
        yield line[indent:]


def _plain(text: str) -> str:
    return _LINK.sub(r"`\g<name>`", " ".join(text.split()))
