"""What the page's files hold, seen without a browser."""

import re
from pathlib import Path

import pytest

from diffusers_flux_ext import server


STATIC = Path(server.__file__).parent / "static"
SCRIPTS = sorted(STATIC.rglob("*.js"))
# Folders, and what their modules may import beside their own.
MAY_IMPORT = {
    "core": set(),
    "form": {"core"},
    "canvas": {"core"},
    "panels": {"core", "form"},
    "results": {"core", "form"},
    "shell": {"core"},
}


def imported(script):
    return [(script.parent / path).resolve() for path in re.findall(r'from "([^"]+)"', script.read_text("utf-8"))]


def test_modules_import_what_is_there():
    assert len(SCRIPTS) > 40
    missing = {script.name: path for script in SCRIPTS for path in imported(script) if not path.is_file()}
    assert missing == {}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_go_down(folder):
    scripts = sorted((STATIC / folder).glob("*.js"))
    assert scripts
    found = {path.parent.name for script in scripts for path in imported(script)}
    assert found - {folder} <= MAY_IMPORT[folder]


def test_files_are_short_and_say_what_they_are_for():
    for script in SCRIPTS:
        lines = script.read_text("utf-8").splitlines()
        assert len(lines) < 200, script.name
        assert lines[0].startswith(("/**", "//")), script.name


def test_no_text_becomes_markup_and_nothing_is_inline():
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            script.name
        )
    page = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)


def test_nothing_is_loaded_from_elsewhere():
    for path in [*SCRIPTS, *STATIC.rglob("*.css"), *STATIC.rglob("*.html")]:
        addresses = set(re.findall(r"https?://[^\s\"')]+", path.read_text("utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name
