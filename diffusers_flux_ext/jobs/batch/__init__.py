"""Running many jobs into a folder: grouped, resumable, by several processes at once."""

from .engine import Engine, LocalEngine, Outcome, Work, draw
from .listed import Listed, read_listed
from .lists import JobListError, read_entries
from .running import Run


__all__ = [
    "Engine", "JobListError", "Listed", "LocalEngine", "Outcome", "Run", "Work", "draw", "read_entries", "read_listed",
]  # fmt: skip
