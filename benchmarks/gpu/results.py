"""The file of results: what was measured, row by row, so that a run goes on where the last one stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import in_words, today
from diffusers_flux_ext.checkpoints.writing import written_at_once


VERSION = 1
# States of a row that another run does not repeat by itself.
FINAL = ("done", "failed")


def key_of(section: str, name: str, settings: dict[str, Any]) -> str:
    """Return what tells a row from all others."""
    return json.dumps([section, name, settings], sort_keys=True)


class Results:
    """Rows by section, name and settings, written to a file after each change.

    Args:
        path (`Path`): The file; it is made if it does not exist.
        machine (`dict[str, Any]`): See [`describe`].
        size (`str`): The size of the models.

    Raises:
        ValueError: if the file holds something else, or results of another machine, other versions or another size.
    """

    def __init__(self, path: Path, machine: dict[str, Any], size: str) -> None:
        self.path = path
        self._content: dict[str, Any] = {"version": VERSION, "machine": machine, "size": size, "rows": []}
        if path.exists():
            self._content = read_results(path)
            self._check(machine, size)
        self._rows = {key_of(row["section"], row["name"], row["settings"]): row for row in self._content["rows"]}

    def _check(self, machine: dict[str, Any], size: str) -> None:
        if self._content["size"] != size:
            raise ValueError(
                f"{self.path} holds results of size {self._content['size']!r}, got {size!r}. Give another `--out`."
            )
        if self._content["machine"] != machine:
            raise ValueError(
                f"{self.path} was measured on {in_words(self._content['machine'])}; this is {in_words(machine)}. "
                f"Figures of both do not belong into one file: give another `--out`."
            )

    def status(self, section: str, name: str, settings: dict[str, Any]) -> str | None:
        """Return `"done"`, `"failed"`, `"missing"`, `"stopped"` or `"begun"`; `None` for a row that has not begun."""
        row = self._rows.get(key_of(section, name, settings))
        return None if row is None else str(row["status"])

    def put(self, section: str, name: str, settings: dict[str, Any], status: str, **more: Any) -> None:
        """Write a row, in the place of what the file has of it.

        Args:
            section (`str`): Its section.
            name (`str`): Its name.
            settings (`dict[str, Any]`): Its sizes and settings.
            status (`str`): See [`status`].
            more: What else is written: `values`, `notes`, `why`, `seconds`.
        """
        row = {"section": section, "name": name, "settings": settings, "status": status, "date": today(), **more}
        self._rows[key_of(section, name, settings)] = row
        self._content["rows"] = list(self._rows.values())
        with written_at_once(self.path) as temporary:
            Path(temporary).write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Args:
        path (`Path`): The file.

    Returns:
        `dict[str, Any]`: with `"machine"`, `"size"` and `"rows"`.

    Raises:
        ValueError: if it is not a file of results.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == VERSION and isinstance(content["rows"], list) and content["machine"]["versions"]:
            return content
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of results of `benchmarks.gpu`: {error!r}.") from error
    raise ValueError(f"{path} is a file of results of version {content['version']}, expected {VERSION}.")
