"""Whether an image shows what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .detection import DetectedObject, describe, detect_background, detect_objects, to_pixels
from .masks import box_to_mask
from .palette import ALL_SHAPES, CANVAS_SIZE, SHAPES, SIZES
from .rendering import render
from .sampling import NOMINAL_RADIUS, ROW_X
from .scene import FREE, PLACES, Scene, ShapeObject


COLOR_SHARE = 0.7
"""An object has a colour when at least this share of its pixels is nearest to it."""

SHAPE_IOU = 0.6
"""An object has a shape when its template fits best and overlaps at least this much."""

INSIDE_SHARE = 0.6
"""An object lies inside a mask when at least this share of its pixels does."""

_POSITION_TOLERANCE = 12.0
_MIN_MASK_SHARE = 0.1
_BRIGHTNESS_TOLERANCE = 0.12
_HALF_WIDTH = {"circle": 1.0, "square": 0.9, "triangle": 1.0, "star": 1.065, "cross": 1.0}


@dataclass(frozen=True)
class ObjectScore:
    """What is right about one object of a scene.

    Args:
        color (`bool`): Its colour.
        shape (`bool`): Its shape: the nearest template, of the right proportions.
        position (`bool`): Its place, to 12 pixels.
        size (`bool`): Its size word.
        style (`bool`): Its style, plain or striped.
    """

    color: bool = False
    shape: bool = False
    position: bool = False
    size: bool = False
    style: bool = False


@dataclass(frozen=True)
class SceneScore:
    """What is right about an image.

    Args:
        background (`bool`): The background's colour.
        objects (`tuple[ObjectScore, ...]`): One score per object of the scene.
        brightness (`bool`, defaults to `True`): The scene's brightness, to 0.12; not looked at if that is 1.
    """

    background: bool
    objects: tuple[ObjectScore, ...]
    brightness: bool = True

    @property
    def all_right(self) -> bool:
        """Whether background, brightness and every object's colour, shape and position are right."""
        return (
            self.background
            and self.brightness
            and all(item.color and item.shape and item.position for item in self.objects)
        )


@dataclass(frozen=True)
class EntityScore:
    """What was found inside one entity's own mask.

    Args:
        color (`bool`): Whether the object there has the entity's colour.
        shape (`bool`): Whether it has the entity's shape.
        style (`bool`, defaults to `False`): Whether it has the entity's style.
    """

    color: bool
    shape: bool
    style: bool = False


def score_scene(image: Image.Image | np.ndarray, scene: Scene) -> SceneScore:
    """Compare an image with a scene, object by object.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, 128 x 128, RGB.
        scene (`Scene`): What it should show.

    Returns:
        `SceneScore`

    Raises:
        ValueError: if the image has another size.
    """
    shapes, brightness = _shapes_of(scene), True
    if scene.brightness != 1:
        brightness = abs(measure_brightness(image, scene) - scene.brightness) < _BRIGHTNESS_TOLERANCE
        image = _brightened(image, scene)
    name, share = detect_background(image)
    background = name == scene.background and share > 0.8
    pixels, found = to_pixels(image), detect_objects(image, min_area=25, shapes=shapes)
    scores = [_score_object(pixels, _in_window(found, item, scene), item, scene) for item in scene.objects]
    return SceneScore(background, tuple(scores), brightness)


def measure_brightness(image: Image.Image | np.ndarray, scene: Scene) -> float:
    """Return the factor by which an image is darker than the palette, as its background tells.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, 128 x 128, RGB.
        scene (`Scene`): What it shows.

    Returns:
        `float`: the best factor for the scene drawn at full brightness, at least 0.

    Raises:
        ValueError: if the image has another size.
    """
    drawn, found = to_pixels(render(replace(scene, brightness=1.0))), to_pixels(image)
    return float((drawn * found).sum() / (drawn * drawn).sum())


def score_entities(
    image: Image.Image | np.ndarray, scene: Scene, masks: Sequence[Image.Image | np.ndarray | Sequence[float]]
) -> list[EntityScore]:
    """Find every entity's colour and shape inside its own mask.

    The object of a mask is the one with most pixels in it, of those that lie mainly inside.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, 128 x 128, RGB.
        scene (`Scene`): What it should show.
        masks (`Sequence`): One mask per object: an image or a boolean array of 128 x 128, or a box
            `(left, top, right, bottom)` in pixels.

    Returns:
        `list[EntityScore]`: in the scene's order.

    Raises:
        ValueError: if there is not one mask per object, or a size is wrong.
    """
    if len(masks) != len(scene.objects):
        raise ValueError(
            f"The scene has {len(scene.objects)} objects, got {len(masks)} masks. Give one per object, in the scene's "
            f"order."
        )
    if scene.brightness != 1:
        image = _brightened(image, scene)
    found = detect_objects(image, shapes=_shapes_of(scene))
    return [_score_entity(_in_mask(found, _read_mask(mask)), item) for mask, item in zip(masks, scene.objects)]


def summarize_entities(scores: Sequence[Sequence[EntityScore]]) -> dict[str, float]:
    """Average over all entities of several images.

    Args:
        scores (`Sequence[Sequence[EntityScore]]`): One list per image.

    Returns:
        `dict[str, float]`: `"color"`, `"shape"`, `"both"` in [0, 1], `"entities"` their number and `"scenes"`, the
        share of images in which every entity has both.

    Raises:
        ValueError: if there is no entity.
    """
    flat = [item for image in scores for item in image]
    if not flat:
        raise ValueError("There is nothing to summarize: no entity was scored.")
    return {
        "color": _mean([item.color for item in flat]),
        "shape": _mean([item.shape for item in flat]),
        "both": _mean([item.color and item.shape for item in flat]),
        "scenes": _mean([all(item.color and item.shape for item in image) for image in scores]),
        "entities": float(len(flat)),
    }


def summarize_scenes(scores: Sequence[SceneScore]) -> dict[str, float]:
    """Average over all objects of several images.

    Args:
        scores (`Sequence[SceneScore]`): One per image.

    Returns:
        `dict[str, float]`: `"background"`, `"color"`, `"shape"`, `"position"`, `"size"` and `"scenes"`, the share of
        images that are all right (the size aside), in [0, 1], and `"objects"`, their number.

    Raises:
        ValueError: if there is no image.
    """
    if not scores:
        raise ValueError("There is nothing to summarize: no image was scored.")
    flat = [item for score in scores for item in score.objects]
    shares = {name: _mean([getattr(item, name) for item in flat]) for name in ("color", "shape", "position", "size")}
    background = _mean([score.background for score in scores])
    scenes = _mean([score.all_right for score in scores])
    return {"background": background, **shares, "scenes": scenes, "objects": float(len(flat))}


def _shapes_of(scene: Scene) -> tuple[str, ...]:
    """Return the shapes to tell apart: those of all scenes, and others only if the scene has them."""
    return tuple(
        shape for shape in ALL_SHAPES if shape in SHAPES or any(shape == each.shape for each in scene.objects)
    )


def _brightened(image: Image.Image | np.ndarray, scene: Scene) -> np.ndarray:
    """Undo a scene's brightness, so that colours can be told."""
    return (to_pixels(image) / scene.brightness).clip(0, 255).astype(np.uint8)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _read_mask(mask: Image.Image | np.ndarray | Sequence[float]) -> np.ndarray:
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L")) > 127
    if not isinstance(mask, np.ndarray):
        return box_to_mask(mask)
    if mask.shape != (CANVAS_SIZE, CANVAS_SIZE):
        raise ValueError(f"A mask must have the shape ({CANVAS_SIZE}, {CANVAS_SIZE}), got {mask.shape}.")
    return mask.astype(bool)


def _in_mask(found: Sequence[DetectedObject], mask: np.ndarray) -> DetectedObject | None:
    inside = [(int((item.mask & mask).sum()), item) for item in found]
    candidates = [
        (count, item)
        for count, item in inside
        if count >= INSIDE_SHARE * item.mask.sum() and count >= _MIN_MASK_SHARE * mask.sum()
    ]
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def _score_entity(found: DetectedObject | None, item: ShapeObject) -> EntityScore:
    if found is None:
        return EntityScore(color=False, shape=False)
    return EntityScore(_has_color(found, item), _has_shape(found, item), found.style == item.style)


def _has_color(found: DetectedObject, item: ShapeObject) -> bool:
    return found.color == item.color and found.color_share >= COLOR_SHARE


def _has_shape(found: DetectedObject, item: ShapeObject) -> bool:
    return found.shape == item.shape and found.shape_iou >= SHAPE_IOU and 0.7 < found.aspect < 1.43


def _expected_center(item: ShapeObject, scene: Scene) -> tuple[float, float]:
    if item.place == FREE:
        left, top, right, bottom = item.extent
        return (left + right) / 2, (top + bottom) / 2
    x, y = PLACES[item.place]
    return (ROW_X[item.place], y) if len(scene.objects) == 3 else (x, y)


def _in_window(found: Sequence[DetectedObject], item: ShapeObject, scene: Scene) -> np.ndarray:
    """Return the union of the spots whose middle is nearest to where this object should be."""
    centers = [_expected_center(other, scene) for other in scene.objects]
    own = scene.objects.index(item)
    union = np.zeros((CANVAS_SIZE, CANVAS_SIZE), dtype=bool)
    for spot in found:
        distances = [(spot.center[0] - x) ** 2 + (spot.center[1] - y) ** 2 for x, y in centers]
        if distances.index(min(distances)) == own:
            union |= spot.mask
    return union


def _score_object(pixels: np.ndarray, window: np.ndarray, item: ShapeObject, scene: Scene) -> ObjectScore:
    if window.sum() < 50:
        return ObjectScore()
    spot = describe(pixels, window, _shapes_of(scene))
    x, y = _expected_center(item, scene)
    position = abs(spot.center[0] - x) < _POSITION_TOLERANCE and abs(spot.center[1] - y) < _POSITION_TOLERANCE
    return ObjectScore(
        _has_color(spot, item),
        _has_shape(spot, item),
        position,
        _size_of(spot, item, scene) == item.size,
        spot.style == item.style,
    )


def _size_of(spot: DetectedObject, item: ShapeObject, scene: Scene) -> str:
    if scene.layout == FREE:
        # Free objects have any radius, so there is no size word to compare with.
        return item.size
    nominal = NOMINAL_RADIUS[len(scene.objects)] * (0.85 if scene.layout == "pos" else 1.0)
    ratio = (spot.extent[2] - spot.extent[0]) / 2 / _HALF_WIDTH[spot.shape] / nominal
    return min(SIZES, key=lambda size: abs(np.log(SIZES[size] / ratio)))
