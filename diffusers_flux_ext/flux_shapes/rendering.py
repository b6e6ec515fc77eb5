"""Scenes as images."""

import math

from PIL import Image, ImageDraw

from .palette import BACKGROUNDS, CANVAS_SIZE, COLORS
from .scene import Scene, ShapeObject


# Drawn this much larger and averaged down, which smooths the edges.
_OVERSAMPLING = 3


def outline(item: ShapeObject) -> list[tuple[float, float]]:
    """Return corners of a square, triangle or star in pixels, in drawing order; a circle has none.

    Args:
        item (`ShapeObject`): The object.

    Returns:
        `list[tuple[float, float]]`
    """
    (x, y), r = item.center, item.radius
    if item.shape == "square":
        half = 0.9 * r
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if item.shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    return [_star_corner(item, index) for index in range(10)] if item.shape == "star" else []


def _star_corner(item: ShapeObject, index: int) -> tuple[float, float]:
    reach = 1.12 * item.radius * (1.0 if index % 2 == 0 else 0.42)
    angle = math.pi * index / 5
    return item.center[0] + reach * math.sin(angle), item.center[1] + 0.06 * item.radius - reach * math.cos(angle)


def render(scene: Scene) -> Image.Image:
    """Draw a scene.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `PIL.Image.Image`: RGB, 128 x 128 pixels; the same scene always gives the same image.
    """
    side = CANVAS_SIZE * _OVERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        _draw(draw, item)
    return image.reduce(_OVERSAMPLING)


def _draw(draw: ImageDraw.ImageDraw, item: ShapeObject) -> None:
    (x, y), r = item.center, item.radius
    if item.shape == "circle":
        box = [value * _OVERSAMPLING for value in (x - r, y - r, x + r, y + r)]
        draw.ellipse(box, fill=COLORS[item.color])
    else:
        corners = [(u * _OVERSAMPLING, v * _OVERSAMPLING) for u, v in outline(item)]
        draw.polygon(corners, fill=COLORS[item.color])
