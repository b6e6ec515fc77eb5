"""`flux-ext demo --all`: every module of the package draws, and the sheet says what was found."""

import pytest
from PIL import Image

from diffusers_flux_ext.cli import showcase
from diffusers_flux_ext.cli.main import main


@pytest.mark.slow
def test_all_modules_draw(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(showcase.TINY_CALL, "num_inference_steps", 2)
    assert main(["demo", "--all", "--out", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.strip().endswith("all.png")
    sheet = Image.open(tmp_path / "demo" / "all.png")
    assert sheet.width > 2 * showcase.SCENES * showcase.SIDE
    drawn = sorted((tmp_path / "demo").glob("*_*.png"))
    assert len(drawn) == 5 * showcase.SCENES


def test_rows_show_held_out_scenes_and_repeat():
    rows = showcase._rows(3)
    assert [row.scenes for row in rows] == [row.scenes for row in showcase._rows(3)]
    assert rows[0].scenes != showcase._rows(4)[0].scenes
