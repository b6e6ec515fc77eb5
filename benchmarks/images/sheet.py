"""A sheet of images in rows, each with a line of text below it."""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from diffusers_flux_ext.cli.contact_sheet import FRAMES, INK, MARGIN, PAPER
from diffusers_flux_ext.flux_shapes import CANVAS_SIZE


LINE = 20


class Cell(NamedTuple):
    """An image and the text below it."""

    image: Image.Image
    caption: str


def make_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Lay images out in rows.

    Args:
        rows (`Sequence[Sequence[Cell]]`): Images of one height, with captions of one line.

    Returns:
        `PIL.Image.Image`
    """
    height = CANVAS_SIZE + LINE + MARGIN
    width = max(sum(cell.image.width + MARGIN for cell in row) for row in rows)
    page = Image.new("RGB", (MARGIN + width, MARGIN + len(rows) * height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for place, row in enumerate(rows):
        left, top = MARGIN, MARGIN + place * height
        for image, caption in row:
            page.paste(image, (left, top))
            draw.text((left, top + CANVAS_SIZE + 3), caption, fill=INK, font=font)
            left += image.width + MARGIN
    return page


def draw_boxes(boxes: Sequence[Sequence[float]], on: Image.Image | None = None) -> Image.Image:
    """Draw boxes on a faded image.

    Args:
        boxes (`Sequence[Sequence[float]]`): `(left, top, right, bottom)` in pixels.
        on (`PIL.Image.Image`, *optional*): The image; an empty one by default.

    Returns:
        `PIL.Image.Image`
    """
    paper = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), PAPER)
    image = paper if on is None else Image.blend(on.convert("RGB"), paper, 0.6)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, CANVAS_SIZE - 1, CANVAS_SIZE - 1), outline=(200, 200, 200))
    for box, color in zip(boxes, FRAMES):
        draw.rectangle(tuple(box), outline=color, width=3)
    return image
