"""A contact sheet: prompt only, regions, result."""

from collections.abc import Sequence
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont


CELL, MARGIN, TEXT_HEIGHT = 256, 16, 76
INK, PAPER, FRAMES = (30, 30, 30), (255, 255, 255), ((214, 39, 40), (31, 119, 180), (44, 160, 44), (148, 103, 189))
HEADS = ("prompt only", "regions", "with regions (EliGen)")


def contact_sheet(
    prompts: Sequence[str],
    without: Sequence[Image.Image],
    global_prompts: Sequence[str],
    entities: Sequence[Sequence[str]],
    boxes: Sequence[Sequence[tuple[float, float, float, float]]],
    results: Sequence[Image.Image],
) -> Image.Image:
    """Lay scenes out in rows of three images with their texts.

    Args:
        prompts (`Sequence[str]`): Prompts of the images without regions.
        without (`Sequence[PIL.Image.Image]`): Those images.
        global_prompts (`Sequence[str]`): The global prompts of the images with regions.
        entities (`Sequence[Sequence[str]]`): Each scene's entity prompts.
        boxes (`Sequence[Sequence[tuple]]`): Each scene's boxes `(left, top, right, bottom)` in pixels.
        results (`Sequence[PIL.Image.Image]`): The images with regions.

    Returns:
        `PIL.Image.Image`
    """
    row_height = CELL + TEXT_HEIGHT
    width = 3 * CELL + 4 * MARGIN
    sheet = Image.new("RGB", (width, 40 + len(prompts) * (row_height + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    columns = [MARGIN + index * (CELL + MARGIN) for index in range(3)]
    for column, head in zip(columns, HEADS):
        draw.text((column, 10), head, fill=INK, font=ImageFont.load_default(18))
    for row, result in enumerate(results):
        top = 40 + row * (row_height + MARGIN)
        regions = draw_regions(without[row], boxes[row], entities[row])
        for column, image in zip(columns, (without[row], regions, result)):
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (column, top))
        texts = (prompts[row], "; ".join(entities[row]), f"global prompt: {global_prompts[row]}")
        for column, text in zip(columns, texts):
            lines = "\n".join(wrap(text, 38))
            draw.multiline_text((column, top + CELL + 4), lines, fill=INK, font=ImageFont.load_default(13), spacing=2)
    return sheet


def draw_regions(
    image: Image.Image, boxes: Sequence[tuple[float, float, float, float]], labels: Sequence[str]
) -> Image.Image:
    """Draw labelled boxes on a faded copy of an image, enlarged to a cell of the sheet.

    Args:
        image (`PIL.Image.Image`): The image.
        boxes (`Sequence[tuple]`): `(left, top, right, bottom)` in the image's pixels.
        labels (`Sequence[str]`): One text per box.

    Returns:
        `PIL.Image.Image`
    """
    faded = Image.blend(image.convert("RGB"), Image.new("RGB", image.size, PAPER), 0.75).resize((CELL, CELL))
    draw, font = ImageDraw.Draw(faded), ImageFont.load_default(13)
    scale = CELL / image.width
    for index, (box, label) in enumerate(zip(boxes, labels)):
        color = FRAMES[index % len(FRAMES)]
        left, top, right, bottom = (value * scale for value in box)
        draw.rectangle((left, top, min(right, CELL - 1), min(bottom, CELL - 1)), outline=color, width=3)
        lines = "\n".join(label.split())
        draw.multiline_text(
            ((left + right) / 2, (top + bottom) / 2), lines, fill=color, font=font, anchor="mm", align="center"
        )
    return faded
