"""What a run leaves behind beside the images: the manifest `results.jsonl` and the contact sheet."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from ...checkpoints.writing import numbered
from .listed import Listed
from .results import ResultFolder
from .sheet import PAGE, contact_sheets


MANIFEST, SHEET = "results.jsonl", "contact_sheet.png"
SUMMARY = "summary"
"""The name of the claim on writing both."""


def summarize(listed: Sequence[Listed], folder: ResultFolder) -> list[dict[str, Any]]:
    """Return what became of each entry of a list, in its order.

    Args:
        listed (`Sequence[Listed]`): The list.
        folder (`ResultFolder`): The results.

    Returns:
        `list[dict[str, Any]]`:
            The lines of the manifest. `status` is `"done"`, `"failed"`, or `"open"` if another run was stopped before
            it came to the job. An entry that repeats an earlier one has its place as `same_as`.
    """
    lines, first = [], dict[str, str]()
    for each in listed:
        line: dict[str, Any] = {"place": each.place, "name": each.name, **_state(each, folder)}
        if each.name in first:
            line["same_as"] = first[each.name]
        first.setdefault(each.name, each.place)
        lines.append(line)
    return lines


def _state(each: Listed, folder: ResultFolder) -> dict[str, Any]:
    record = None if each.work is None else folder.record(each.name, each.work.digest)
    if record is not None:
        return {"status": "done", **{name: record.get(name) for name in ("images", "seeds", "seconds")}}
    error = folder.error(each.name)
    if error is not None:
        return {"status": "failed", "error": error.get("error"), "message": error.get("message")}
    return {"status": "open"}


def write_summary(listed: Sequence[Listed], folder: ResultFolder) -> list[str]:
    """Write the contact sheet and then the manifest, unless they are there and say the same.

    Args:
        listed (`Sequence[Listed]`): The list.
        folder (`ResultFolder`): The results.

    Returns:
        `list[str]`: the names of the files; the sheet has several pages for more than 96 images.
    """
    lines = summarize(listed, folder)
    manifest = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    shown = [
        found for each, line in zip(listed, lines) if "same_as" not in line for found in _shown(each, line, folder)
    ]
    count = -(-len(shown) // PAGE)
    pages = [numbered(SHEET, index, count) for index in range(count)]
    if folder.store.read(MANIFEST) != manifest or not set(pages) <= set(folder.store.names()):
        for name, page in zip(pages, contact_sheets(shown)):
            buffer = io.BytesIO()
            page.save(buffer, "PNG")
            folder.store.write(name, buffer.getvalue())
        folder.store.write(MANIFEST, manifest)
    return [MANIFEST, *pages]


def _shown(
    each: Listed, line: dict[str, Any], folder: ResultFolder
) -> list[tuple[Callable[[], bytes | None] | None, str]]:
    if line["status"] != "done":
        return [(None, f"{each.place}: {line['status']}")]
    prompt = "" if each.work is None else each.work.job.to_dict()["call"].get("prompt") or ""
    text = prompt if isinstance(prompt, str) else " | ".join(prompt)
    return [(functools.partial(folder.store.read, image["file"]), text or each.name) for image in line["images"]]
