"""When samples may be mirrored."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from .transforms import Transform


LEFT_OR_RIGHT = re.compile(r"\b(?:left|right)(?:most|wards?|-hand(?:ed)?|hand(?:ed)?|side)?\b", re.IGNORECASE)
"""Words that a flip would make wrong."""


def check_flips(
    transform: Transform,
    texts: Iterable[tuple[str, str]] = (),
    unsized: Collection[str] = (),
    opted_out: Collection[str] = (),
) -> None:
    """Check that mirrored samples would still be right.

    Args:
        transform (`Transform`): The transform.
        texts (`Iterable[tuple[str, str]]`): Each text of the data set, after the name of its row.
        unsized (`Collection[str]`): Columns of images with a size of their own.
        opted_out (`Collection[str]`): What may not be mirrored, in words: sources or conditions that were opted out.

    Raises:
        ValueError: if samples are mirrored and a text says left or right, a reference is not mirrored with its target,
            or something was opted out.
    """
    if not transform.flip:
        return
    if opted_out:
        raise ValueError(
            f"`flip` is {transform.flip}, but {', '.join(sorted(opted_out))} may not be mirrored. Set it to 0."
        )
    alone = sorted(set(unsized) - set(transform.flip_columns))
    if alone:
        raise ValueError(
            f"`flip` is {transform.flip}, which mirrors the target, but not the images of {alone}. Name the columns "
            f"in `flip_columns` to mirror them with it, or set `flip` to 0."
        )
    sided = [f"{name}: {text!r}" for name, text in texts if LEFT_OR_RIGHT.search(text)]
    if sided:
        more = f" and {len(sided) - 3} more" if len(sided) > 3 else ""
        raise ValueError(
            f"`flip` is {transform.flip}, but {len(sided)} texts say left or right, which mirrored images would "
            f"contradict: {'; '.join(sided[:3])}{more}. Set `flip` to 0 for this data."
        )
