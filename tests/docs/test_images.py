"""Images of the documentation: each is made by a script, shown on a page, and small."""

import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.images.__main__ import FOLDER, SHEETS, save
from benchmarks.images.conditions import insert_anything
from benchmarks.images.sheet import Cell, draw_boxes, make_sheet
from diffusers_flux_ext.flux_shapes import CANVAS_SIZE


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Drawn by `flux-ext demo`, by `flux-ext demo --all`, and in a browser by `benchmarks/page_images.py`.
ELSEWHERE = ("demo", "demo_all", "page_")
MOST_BYTES = 1_500_000


def shown():
    """The files that pages show."""
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", page.read_text(encoding="utf-8")):
            yield (page.parent / target).resolve()


def test_every_image_is_made_by_a_script_and_shown():
    files = {path.stem for path in FOLDER.iterdir()}
    assert {name for name in files if not name.startswith(ELSEWHERE)} == SHEETS.keys()
    assert {path.stem for path in shown()} == files
    assert all(path.exists() for path in shown())


def test_all_images_together_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_a_sheet_has_a_row_for_each_row(tmp_path):
    red = Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), "red")
    one, two = make_sheet([[Cell(red, "a")]]), make_sheet([[Cell(red, "a"), Cell(red, "b")], [Cell(red, "c")]])
    assert two.width > one.width + CANVAS_SIZE
    assert two.height > one.height + CANVAS_SIZE
    save(two, tmp_path / "two.png")
    colors = Image.open(tmp_path / "two.png").convert("RGB").getcolors(1000)
    assert max((count, color) for count, color in colors if color[0] > color[1])[0] >= 3 * CANVAS_SIZE**2


@pytest.mark.parametrize("on", [None, Image.new("RGB", (CANVAS_SIZE, CANVAS_SIZE), "black")])
def test_boxes_are_drawn_where_they_are(on):
    drawn = draw_boxes([(10, 20, 50, 60)], on)
    assert drawn.getpixel((10, 40)) != drawn.getpixel((30, 40))


def test_insert_anything_shows_its_canvas_without_a_model():
    (source, reference), (canvas, mask) = insert_anything()
    assert source.image.size == reference.image.size == (CANVAS_SIZE, CANVAS_SIZE)
    assert canvas.image.size == mask.image.size == (2 * CANVAS_SIZE, CANVAS_SIZE)
    assert len(mask.image.getcolors()) == 2
