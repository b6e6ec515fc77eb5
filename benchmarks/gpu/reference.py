"""The reference beside the others, where it can be imported."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

from benchmarks.gpu.clock import reason


@cache
def why_missing() -> str | None:
    """Return why the reference cannot run here; `None` if it can."""
    if importlib.util.find_spec("diffsynth") is None:
        return "the package `diffsynth` is not installed"
    try:
        importlib.import_module("benchmarks.support.reference.pipeline")
    except Exception as error:  # A package that it needs may be missing or of another version in any way.
        return f"`diffsynth` cannot be imported: {reason(error)}"
    return None


def note() -> list[str]:
    """Return a sentence that says why the reference is missing, if it is."""
    why = why_missing()
    return [] if why is None else [f"The reference did not run: {why}."]


def shared_dit(transformer: Any) -> Any:
    """Return the reference's transformer, which shares what it can with diffusers' one."""
    from benchmarks.support.reference.dit import reference_dit

    return reference_dit(transformer, share=True)


def pipeline(components: dict[str, Any], device: Any, dtype: Any) -> Any:
    """Return the reference's pipeline with the weights of components that are on a device."""
    from benchmarks.support.reference.pipeline import reference_pipeline

    return reference_pipeline(components, device, dtype)
