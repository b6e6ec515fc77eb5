"""Packages that jobs need, looked for before torch is imported."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import CommandLineError


JOBS = ("pydantic", "yaml", "filelock")


def missing_for_jobs() -> list[str]:
    """Return the packages of the extra `jobs` that are not installed."""
    return [name for name in JOBS if find_spec(name) is None]


def check_jobs_extra() -> None:
    """Raise a [`CommandLineError`] unless the packages of the extra `jobs` are installed."""
    missing = missing_for_jobs()
    if missing:
        raise CommandLineError(f"{' and '.join(missing)} is missing: `pip install 'diffusers-flux-ext[jobs]'`")
