"""What an image shows: background and objects, found without any model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .palette import ALL_SHAPES, CANVAS_SIZE, SHAPES, main_color
from .rendering import render
from .scene import Scene, ShapeObject


MIN_AREA = 50
"""Pixels below which a spot is not taken for an object."""

_CONTRAST = 60.0
_TEMPLATE_SIZE = 32
_STRIPE_CONTRAST = 5.0


@dataclass(frozen=True)
class DetectedObject:
    """A connected region that stands out from the background.

    Args:
        color (`str`): The colour that most of its pixels are nearest to.
        color_share (`float`): The share of its pixels that have that colour.
        shape (`str`): The shape whose template it overlaps most.
        shape_iou (`float`): That overlap, intersection over union, in [0, 1].
        extent (`tuple[float, float, float, float]`): `(left, top, right, bottom)` in pixels.
        mask (`np.ndarray` of shape `(128, 128)`): Its pixels, boolean.
        style (`str`, defaults to `"plain"`): One of `STYLES`.
    """

    color: str
    color_share: float
    shape: str
    shape_iou: float
    extent: tuple[float, float, float, float]
    mask: np.ndarray
    style: str = "plain"

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the extent, `(x, y)` in pixels."""
        left, top, right, bottom = self.extent
        return (left + right) / 2, (top + bottom) / 2

    @property
    def aspect(self) -> float:
        """Width over height of the extent."""
        left, top, right, bottom = self.extent
        return (right - left) / (bottom - top)


def to_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Convert an image to an array.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`):
            128 x 128; an array is RGB, `(128, 128, 3)`, of bytes or of floats in [0, 1].

    Returns:
        `np.ndarray` of shape `(128, 128, 3)`: floats in [0, 255].

    Raises:
        ValueError: if the size or the number of channels is wrong.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.shape != (CANVAS_SIZE, CANVAS_SIZE, 3):
        raise ValueError(
            f"The scorer takes RGB images of {CANVAS_SIZE} x {CANVAS_SIZE} pixels, got one of shape {pixels.shape}. "
            f"Draw with height={CANVAS_SIZE}, width={CANVAS_SIZE}."
        )
    return pixels.astype(float) * (1.0 if pixels.dtype == np.uint8 else 255.0)


def detect_background(image: Image.Image | np.ndarray) -> tuple[str, float]:
    """Return the background's colour, from the image's edge.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, as for `to_pixels`.

    Returns:
        `tuple[str, float]`: the colour's name, and the share of the edge's pixels that have it.
    """
    return main_color(_edge(to_pixels(image)))


def detect_objects(
    image: Image.Image | np.ndarray, min_area: int = MIN_AREA, shapes: Sequence[str] = SHAPES
) -> list[DetectedObject]:
    """Find all objects of an image, the largest first.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, as for `to_pixels`.
        min_area (`int`, defaults to 50): Smaller spots, in pixels, are left out.
        shapes (`Sequence[str]`, defaults to `SHAPES`): The shapes that objects may have, of `ALL_SHAPES`.

    Returns:
        `list[DetectedObject]`
    """
    pixels = to_pixels(image)
    spots = [spot for spot in _connected(foreground(pixels)) if spot.sum() >= min_area]
    spots.sort(key=lambda spot: -int(spot.sum()))
    return [describe(pixels, spot, shapes) for spot in spots]


def foreground(pixels: np.ndarray) -> np.ndarray:
    """Return which pixels differ clearly from the image's edge.

    Args:
        pixels (`np.ndarray` of shape `(128, 128, 3)`): Floats in [0, 255].

    Returns:
        `np.ndarray` of shape `(128, 128)`, boolean.
    """
    background = np.median(_edge(pixels), axis=0)
    return np.sqrt(((pixels - background) ** 2).sum(axis=-1)) > _CONTRAST


def describe(pixels: np.ndarray, mask: np.ndarray, shapes: Sequence[str] = SHAPES) -> DetectedObject:
    """Describe colour, shape and extent of the pixels inside a mask.

    Args:
        pixels (`np.ndarray` of shape `(128, 128, 3)`): Floats in [0, 255].
        mask (`np.ndarray` of shape `(128, 128)`): Boolean, at least one pixel.
        shapes (`Sequence[str]`, defaults to `SHAPES`): The shapes that it may have, of `ALL_SHAPES`.

    Returns:
        `DetectedObject`
    """
    color, share = main_color(pixels[mask])
    overlaps = {shape: _iou(_normalized(mask), _templates()[shape]) for shape in shapes}
    shape = max(overlaps, key=overlaps.__getitem__)
    rows, columns = np.nonzero(mask)
    extent = (float(columns.min()), float(rows.min()), float(columns.max()) + 1.0, float(rows.max()) + 1.0)
    return DetectedObject(color, share, shape, overlaps[shape], extent, mask, _style_of(pixels, mask))


def _style_of(pixels: np.ndarray, mask: np.ndarray) -> str:
    """Tell stripes from one colour by how much the rows inside of an object differ."""
    inner = mask.copy()
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner &= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows = [pixels[row][inner[row]].mean() for row in np.flatnonzero(inner.any(axis=1))]
    return "striped" if len(rows) >= 6 and np.std(rows) > _STRIPE_CONTRAST else "plain"


def _edge(pixels: np.ndarray) -> np.ndarray:
    strips = (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:])
    return np.concatenate([strip.reshape(-1, 3) for strip in strips])


def _connected(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield every 4-connected component, by spreading the smallest label until nothing changes."""
    size = mask.size + 1
    labels = np.where(mask, np.arange(mask.size).reshape(mask.shape), size)
    while True:
        padded = np.pad(labels, 1, constant_values=size)
        around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        spread = np.where(mask, np.minimum.reduce([labels, *around]), size)
        # A label is itself a pixel's number: following it takes long strides.
        spread = np.where(mask, spread.ravel()[np.where(mask, spread, 0)], size)
        if np.array_equal(spread, labels):
            break
        labels = spread
    for label in np.unique(labels[mask]):
        yield labels == label


@lru_cache(maxsize=1)
def _templates() -> dict[str, np.ndarray]:
    scenes = {shape: Scene("white", (ShapeObject(shape, "black", "", (64.0, 64.0), 27.0),)) for shape in ALL_SHAPES}
    images = {shape: np.asarray(render(scene), dtype=float) for shape, scene in scenes.items()}
    return {shape: _normalized(image.sum(axis=-1) < 380) for shape, image in images.items()}


def _normalized(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.uint8) * 255
    resized = Image.fromarray(cut).resize((_TEMPLATE_SIZE, _TEMPLATE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max(1, (first | second).sum()))
