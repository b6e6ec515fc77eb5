"""Regions of a scene's objects."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .palette import CANVAS_SIZE
from .scene import Scene


Box = tuple[int, int, int, int]
"""`(left, top, right, bottom)` in pixels, right and bottom exclusive."""


def entity_boxes(scene: Scene, margin: float = 4.0) -> list[Box]:
    """Return a box around every object.

    Args:
        scene (`Scene`): The scene.
        margin (`float`, defaults to 4.0): Margin around the object in pixels, at least 0.

    Returns:
        `list[Box]`: in the scene's order, cut at the image's edges.

    Raises:
        ValueError: if `margin` is negative.
    """
    if margin < 0:
        raise ValueError(f"`margin` must be at least 0 pixels, got {margin}.")
    return [_round_out(item.extent, (margin, margin, margin, margin)) for item in scene.objects]


def sample_boxes(scene: Scene, rng: random.Random, loose: float = 0.2) -> list[Box]:
    """Return boxes as users draw them: with 0 to 8 pixels of margin, and some sides up to 14 pixels further out.

    Args:
        scene (`Scene`): The scene.
        rng (`random.Random`): Source of randomness.
        loose (`float`, defaults to 0.2): Share of off-centre boxes, in [0, 1].

    Returns:
        `list[Box]`: in the scene's order.
    """
    boxes = []
    for item in scene.objects:
        margin = rng.uniform(0, 8)
        extra = [0.0] * 4
        if rng.random() < loose:
            extra = [rng.uniform(0, 14) if rng.random() < 0.5 else 0.0 for _ in range(4)]
        boxes.append(_round_out(item.extent, tuple(margin + value for value in extra)))
    return boxes


def box_to_mask(box: Sequence[float]) -> np.ndarray:
    """Return a box as an image-sized mask.

    Args:
        box (`Sequence[float]`): `(left, top, right, bottom)` in pixels.

    Returns:
        `np.ndarray` of shape `(128, 128)`, boolean.

    Raises:
        ValueError: if the box has no area inside the image.
    """
    left, top, right, bottom = (min(max(round(value), 0), CANVAS_SIZE) for value in box)
    if left >= right or top >= bottom:
        raise ValueError(
            f"The box {tuple(box)} has no area inside the {CANVAS_SIZE} x {CANVAS_SIZE} image; boxes are "
            f"(left, top, right, bottom) in pixels."
        )
    mask = np.zeros((CANVAS_SIZE, CANVAS_SIZE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def entity_masks(scene: Scene, margin: float = 4.0) -> list[Image.Image]:
    """Return the boxes of all objects as black and white images.

    Args:
        scene (`Scene`): The scene.
        margin (`float`, defaults to 4.0): Margin around the object in pixels, at least 0.

    Returns:
        `list[PIL.Image.Image]`: in the scene's order, mode `"L"`, white inside.
    """
    masks = (box_to_mask(box) for box in entity_boxes(scene, margin))
    return [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks]


def token_mask(mask: np.ndarray, token_size: int = 16) -> np.ndarray:
    """Return which tokens a mask touches: any pixel of a token's patch counts.

    Args:
        mask (`np.ndarray` of shape `(height, width)`): Boolean.
        token_size (`int`, defaults to 16): Side of a token's patch in pixels.

    Returns:
        `np.ndarray` of shape `(height // token_size, width // token_size)`, boolean.

    Raises:
        ValueError: if the mask's sides are not multiples of `token_size`.
    """
    if mask.ndim != 2 or mask.shape[0] % token_size or mask.shape[1] % token_size:
        raise ValueError(f"The mask's shape {mask.shape} is not two multiples of `token_size` {token_size}.")
    rows, columns = mask.shape[0] // token_size, mask.shape[1] // token_size
    return np.any(mask.reshape(rows, token_size, columns, token_size), axis=(1, 3))


def _round_out(extent: Sequence[float], margins: Sequence[float]) -> Box:
    left, top, right, bottom = extent
    return (
        max(0, int(left - margins[0])),
        max(0, int(top - margins[1])),
        min(CANVAS_SIZE, int(np.ceil(right + margins[2]))),
        min(CANVAS_SIZE, int(np.ceil(bottom + margins[3]))),
    )
