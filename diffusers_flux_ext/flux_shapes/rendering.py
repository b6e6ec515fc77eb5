"""Scenes as images."""

import math

from PIL import Image, ImageChops, ImageDraw

from .palette import BACKGROUNDS, CANVAS_SIZE, COLORS, shade
from .scene import Scene, ShapeObject


# Drawn this much larger and averaged down, which smooths the edges.
_OVERSAMPLING = 3

STRIPE = 4
"""Height of a stripe in pixels."""


def outline(item: ShapeObject) -> list[tuple[float, float]]:
    """Return corners of any shape but a circle, which has none, in pixels and in drawing order.

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
    if item.shape == "cross":
        return _cross_corners(x, y, r)
    return [_star_corner(item, index) for index in range(10)] if item.shape == "star" else []


def _cross_corners(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    arm, turns = 0.32 * radius, ((1, 0), (0, 1), (-1, 0), (0, -1))
    # Each arm of three corners, turned by quarters.
    return [
        (x + u * a - v * b, y + v * a + u * b)
        for u, v in turns
        for a, b in ((arm, -arm), (radius, -arm), (radius, arm))
    ]


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
        _draw(draw, item, COLORS[item.color])
        if item.style == "striped":
            image.paste(shade(item.color), mask=_stripes(item, side))
    reduced = image.reduce(_OVERSAMPLING)
    if scene.brightness == 1:
        return reduced
    return reduced.point([round(scene.brightness * value) for value in range(256)] * 3)


def render_outlines(scene: Scene) -> Image.Image:
    """Draw the outlines of a scene's objects, as an edge detector would.

    Args:
        scene (`Scene`): The scene.

    Returns:
        `PIL.Image.Image`: RGB, 128 x 128 pixels, white lines two pixels wide on black.
    """
    side = CANVAS_SIZE * _OVERSAMPLING
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        inner = ShapeObject(item.shape, item.color, item.size, item.center, max(item.radius - 2, 0.1), item.place)
        _draw(draw, item, (255, 255, 255))
        _draw(draw, inner, (0, 0, 0))
    return image.reduce(_OVERSAMPLING)


def _draw(draw: ImageDraw.ImageDraw, item: ShapeObject, fill: tuple[int, int, int] | int) -> None:
    (x, y), r = item.center, item.radius
    if item.shape == "circle":
        box = [value * _OVERSAMPLING for value in (x - r, y - r, x + r, y + r)]
        draw.ellipse(box, fill=fill)
    else:
        corners = [(u * _OVERSAMPLING, v * _OVERSAMPLING) for u, v in outline(item)]
        draw.polygon(corners, fill=fill)


def _stripes(item: ShapeObject, side: int) -> Image.Image:
    """Return where a striped object has its second shade: every other band of its height."""
    shape, bands = (Image.new("L", (side, side)) for _ in range(2))
    _draw(ImageDraw.Draw(shape), item, 255)
    height = STRIPE * _OVERSAMPLING
    for top in range(0, side, 2 * height):
        bands.paste(255, (0, top, side, top + height))
    return ImageChops.multiply(shape, bands)
