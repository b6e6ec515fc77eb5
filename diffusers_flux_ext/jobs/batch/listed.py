"""The jobs of a list, named by what they draw."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import JobError
from ..files import JobFiles
from ..reading import read_job
from .engine import Work
from .lists import Entry
from .storage import files_beside


# 80 bits: among a million jobs two different ones share a name with a chance of one to a trillion.
NAME_LENGTH = 20
WRONG = "wrong-"


@dataclass(frozen=True)
class Listed:
    """An entry of a list.

    Attributes:
        place (`str`): Where it stands.
        name (`str`): The beginning of the job's digest, or `wrong_name` if it is not a job.
        wrong_name (`str`): The name of its failure as long as it is not a job.
        work (`Work`, *optional*): The job.
        error (`Exception`, *optional*): Why it is not one.
    """

    place: str
    name: str
    wrong_name: str
    work: Work | None = None
    error: Exception | None = None


def read_listed(entries: Sequence[Entry]) -> list[Listed]:
    """Read the jobs of a list.

    Args:
        entries (`Sequence[Entry]`): The entries.

    Returns:
        `list[Listed]`: one for each.
    """
    found: dict[str, JobFiles] = {}
    for entry in entries:
        base = os.fspath(entry.base)
        if base not in found:
            found[base] = files_beside(base)
    return [_listed(entry, found[os.fspath(entry.base)]) for entry in entries]


def _listed(entry: Entry, files: JobFiles) -> Listed:
    wrong = wrong_name(entry)
    try:
        if entry.problem is not None:
            raise JobError.of("", entry.problem)
        job = read_job(entry.content)
        digest = job.digest(files)
    except (OSError, ValueError) as error:
        return Listed(entry.place, wrong, wrong, error=error)
    name = digest[:NAME_LENGTH]
    return Listed(entry.place, name, wrong, Work(name, digest, entry.place, job, files))


def wrong_name(entry: Entry) -> str:
    """Return a name made from what an entry says, which stays the same when a file that it names is supplied.

    Args:
        entry (`Entry`): The entry.
    """
    text = json.dumps(entry.content, sort_keys=True, default=str)
    return f"{WRONG}{hashlib.sha256(text.encode()).hexdigest()[:NAME_LENGTH]}"
