"""Insert-Anything's pictures and masks, one for all prompts or one for each, as diptychs."""

from __future__ import annotations

from typing import Any

from ...inputs.masks import list_regions
from .diptych import Diptych, make_diptych


def read_diptychs(
    source_image: Any, source_mask: Any, reference_image: Any, reference_mask: Any, size: int
) -> list[Diptych]:
    """One diptych for all prompts, or one for each.

    Args:
        source_image, source_mask, reference_image, reference_mask:
            As for [`make_diptych`]; a list gives one for each prompt, and what is no list serves them all.
        size (`int`): Height of the diptychs.

    Returns:
        `list[Diptych]`

    Raises:
        ValueError: if lists differ in length, or as [`make_diptych`] does.
    """
    given: dict[str, list[Any]] = {
        "source_image": _listed(source_image),
        "source_mask": list_regions(source_mask, "`source_mask`"),
        "reference_image": _listed(reference_image),
        "reference_mask": list_regions(reference_mask, "`reference_mask`"),
    }
    lengths = {name: len(values) for name, values in given.items()}
    count = max(lengths.values())
    wrong = [f"`{name}`" for name, length in lengths.items() if length not in (1, count)]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} does not go together with the other pictures and masks: {lengths}. Give one for all "
            f"or "
            f"one for each."
        )
    return [
        make_diptych(**{name: values[index % len(values)] for name, values in given.items()}, size=size)
        for index in range(count)
    ]


def _listed(pictures: Any) -> list[Any]:
    return list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
