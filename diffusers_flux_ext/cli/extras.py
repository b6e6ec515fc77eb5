"""Packages that jobs need, looked for before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from .errors import CommandLineError


JOBS = ("pydantic", "yaml", "filelock")


def missing(packages: Sequence[str]) -> list[str]:
    """Return those of some packages that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def missing_for_jobs() -> list[str]:
    """Return the packages of the extra `jobs` that are not installed."""
    return missing(JOBS)


def check_jobs_extra() -> None:
    """Raise a [`CommandLineError`] unless the packages of the extra `jobs` are installed."""
    names = missing_for_jobs()
    if names:
        raise CommandLineError(f"{' and '.join(names)} is missing: `pip install 'diffusers-flux-ext[jobs]'`")
