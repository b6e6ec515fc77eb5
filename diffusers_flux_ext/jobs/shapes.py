"""Painted regions as images: hard edges, so that the same strokes are the same pixels everywhere."""

from __future__ import annotations

from PIL import Image, ImageDraw

from .values import Point, Polygon, Stroke, Strokes


INSIDE, OUTSIDE = 255, 0


def draw_region(region: Strokes | Polygon, size: tuple[int, int]) -> Image.Image:
    """Draw a region.

    Args:
        region (`Strokes` or `Polygon`): The region.
        size (`tuple[int, int]`): Width and height of the canvas, in pixels.

    Returns:
        `PIL.Image.Image` in grey: white is inside, and there is nothing between black and white.
    """
    image = Image.new("L", size, OUTSIDE)
    draw = ImageDraw.Draw(image)
    if isinstance(region, Polygon):
        draw.polygon(_in_pixels(region.polygon, size), fill=INSIDE)
    else:
        for stroke in region.strokes:
            _draw_stroke(draw, stroke, size)
    return image


def _draw_stroke(draw: ImageDraw.ImageDraw, stroke: Stroke, size: tuple[int, int]) -> None:
    fill = OUTSIDE if stroke.erase else INSIDE
    points, width = _in_pixels(stroke.points, size), max(1.0, stroke.width * min(size))
    draw.line(points, fill=fill, width=max(1, round(width)))
    # Round ends and corners.
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)


def _in_pixels(points: tuple[Point, ...], size: tuple[int, int]) -> list[tuple[float, float]]:
    # The middle of the first pixel is at (0, 0) for the library.
    return [(x * size[0] - 0.5, y * size[1] - 0.5) for x, y in points]
