"""Curves over small counts in one image, drawn with Pillow."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


SIZE, LEFT, TOP, RIGHT, BOTTOM = (900, 560), 80, 60, 150, 70
COLOURS = ("#1f6fb4", "#c8501e", "#2a8f4f", "#7a4fa3", "#8a6d1d")


def draw_curves(curves: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Draw one line per entry over the counts 0, 1, 2, ...

    Args:
        curves (`Mapping[str, Sequence[float]]`): Values at 0, 1, 2, ... by name.
        title (`str`): What the values are.
        path (`Path`): The image to write.
    """
    image = Image.new("RGB", SIZE, "white")
    pen, font, small = ImageDraw.Draw(image), ImageFont.load_default(18), ImageFont.load_default(15)
    most = max(len(values) for values in curves.values()) - 1
    top = int(max(max(values) for values in curves.values())) + 1
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(count: float, value: float) -> tuple[float, float]:
        return LEFT + width * count / most, TOP + height * (1 - value / top)

    pen.text((LEFT, 20), title, "black", font)
    pen.text((LEFT + width / 2, SIZE[1] - 20), "number of inputs", "black", small, anchor="mm")
    for value in range(top + 1):
        x, y = place(0, value)
        pen.line([(x, y), place(most, value)], "#dddddd")
        pen.text((x - 10, y), str(value), "black", small, anchor="rm")
    for count in range(most + 1):
        x, y = place(count, 0)
        pen.text((x, y + 18), str(count), "black", small, anchor="mm")
    for (name, values), colour in zip(curves.items(), COLOURS):
        points = [place(count, value) for count, value in enumerate(values)]
        pen.line(points, colour, width=3)
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        x, y = points[-1]
        pen.text((x + 10, y), f"{name} {values[-1]:.1f}", colour, small, anchor="lm")
    image.save(path)
