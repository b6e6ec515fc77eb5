"""The releases that can be planned without loading weights, by name. This module does not import torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..demand import Demand
from . import METHODS
from .method import Release


MASK_PADDING = Release("mask-padding", "the padding of prompts is hidden", demand=lambda number: Demand(masked=True))


def releases() -> dict[str, Release]:
    """Return the releases that can be planned, by name."""
    own = {release.name: release for method in METHODS.values() for release in method.releases}
    return {**own, MASK_PADDING.name: MASK_PADDING}


def released_modules(name: str) -> Mapping[str, Any]:
    """Return what makes the modules of a release, by the modules' names.

    Args:
        name (`str`): The release.

    Returns:
        `Mapping[str, Callable]`
    """
    for method in METHODS.values():
        for release in method.releases:
            if release.name == name:
                return method.modules(release)
    return {}


def check_counts(methods: Sequence[tuple[str, int | None]]) -> None:
    """Check names and numbers of releases.

    Args:
        methods (`Sequence[tuple[str, int or None]]`): Names, each with how many entities, references and so on.

    Raises:
        ValueError: if a name is unknown, or a release without a count has a number.
    """
    known = releases()
    unknown = sorted({name for name, _ in methods} - known.keys())
    if unknown:
        raise ValueError(f"Unknown methods {unknown}. Choose from {sorted(known)}.")
    wrong = [f"{name}={count}" for name, count in methods if count is not None and known[name].counts is None]
    if wrong:
        counted = [release.name for release in known.values() if release.counts]
        raise ValueError(f"{wrong} do not take a number; {counted} do.")
