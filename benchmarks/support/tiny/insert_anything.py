"""Sources and references for Insert-Anything."""

from typing import Any

import numpy as np
from PIL import Image

from benchmarks.support.tiny.ip_adapter import picture


def region(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    """A mask of `size` (width, height) with an ellipse that fills the box (left, top, right, bottom)."""
    left, top, right, bottom = box
    rows, columns = np.mgrid[: size[1], : size[0]]
    middle, radius = ((left + right - 1) / 2, (top + bottom - 1) / 2), ((right - left) / 2, (bottom - top) / 2)
    inside = ((columns - middle[0]) / radius[0]) ** 2 + ((rows - middle[1]) / radius[1]) ** 2 <= 1
    return Image.fromarray(inside.astype(np.uint8) * 255).convert(mode)


def pictures(
    source: tuple[int, int] = (120, 90), box: tuple[int, int, int, int] = (40, 30, 70, 60), seed: int = 0
) -> dict[str, Any]:
    """The four inputs, with a source of this size and a region in this box."""
    return {
        "source_image": picture(seed, source),
        "source_mask": region(source, box),
        "reference_image": picture(seed + 7, (80, 100)),
        "reference_mask": region((80, 100), (20, 10, 61, 84)),
    }
