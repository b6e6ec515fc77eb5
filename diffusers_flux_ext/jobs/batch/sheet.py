"""A contact sheet of results."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from textwrap import shorten, wrap

from PIL import Image, ImageDraw, ImageFont, ImageOps


CELL, MARGIN, TEXT = 192, 12, 44
COLUMNS, ROWS = 8, 12
PAGE = COLUMNS * ROWS
INK, PAPER, MISSING = (30, 30, 30), (255, 255, 255), (238, 222, 222)
Read = Callable[[], bytes | None]


def contact_sheets(shown: Sequence[tuple[Read | None, str]]) -> Iterator[Image.Image]:
    """Lay images out in pages of at most 96, with a text below each.

    Args:
        shown (`Sequence[tuple[Callable or None, str]]`):
            What reads an image's file, and its text; `None`, or a file that is gone, shows an empty frame.

    Yields:
        `PIL.Image.Image`: a page.
    """
    for start in range(0, len(shown), PAGE):
        yield _page(shown[start : start + PAGE])


def _page(shown: Sequence[tuple[Read | None, str]]) -> Image.Image:
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width, height = CELL + MARGIN, CELL + TEXT + MARGIN
    page = Image.new("RGB", (MARGIN + columns * width, MARGIN + rows * height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for index, (read, text) in enumerate(shown):
        left, top = MARGIN + index % columns * width, MARGIN + index // columns * height
        data = None if read is None else read()
        if data is None:
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=MISSING)
        else:
            small = _thumbnail(data)
            page.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
        lines = wrap(shorten(text, 84, placeholder=" ..."), 30)
        draw.multiline_text((left, top + CELL + 3), "\n".join(lines[:3]), fill=INK, font=font, spacing=1)
    return page


def _thumbnail(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (CELL, CELL))
        return ImageOps.contain(image.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS)
