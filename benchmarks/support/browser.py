"""The server's page in a real browser, for tests and screenshots."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
DRAWN_SECONDS = 60
# A box, and a brush that fills a square on its right, in fractions of the canvas.
LEFT = (0.08, 0.3, 0.46, 0.7)
ZIGZAG = [
    (0.62, 0.38),
    (0.84, 0.38),
    (0.84, 0.46),
    (0.62, 0.46),
    (0.62, 0.54),
    (0.84, 0.54),
    (0.84, 0.62),
    (0.62, 0.62),
]


def missing_browser() -> str | None:
    """Return why no browser can be driven here, or `None` if one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return None if find_browser() else f"no browser was found; one of {', '.join(BROWSERS)} is needed"


def find_browser() -> str | None:
    """Return the path of a browser of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser without windows."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def serve_tiny(folder: Path) -> Iterator[str]:
    """Run `flux-ext serve --model tiny` and yield its address.

    Args:
        folder (`Path`): Where the server keeps its state.
    """
    command = [sys.executable, "-m", "diffusers_flux_ext.cli.main", "serve", "--model", "tiny", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [*command, "--state", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as server:
        try:
            yield _address_of(server)
        finally:
            server.terminate()


def _address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    lines = []
    for line in server.stdout:
        if found := re.search(r"http://\S+?:\d+", line):
            return found[0]
        lines.append(line)
    raise RuntimeError(f"The server ended before it listened:\n{''.join(lines)}")


class FluxPage:
    """The page, in the words of its user.

    Args:
        page (`Page`): A page of the browser.
        address (`str`): Address of the server.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address

    def open(self) -> FluxPage:
        """Open the page and wait until it can be used."""
        self.page.goto(self.address)
        self.page.wait_for_selector("#app:not([hidden])")
        return self

    def drag(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw on the canvas with the mouse, through points in fractions."""
        self.page.locator("#canvas").scroll_into_view_if_needed()
        frame = self.page.locator("#canvas").bounding_box()
        assert frame is not None
        places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def use_tool(self, name: str) -> None:
        """Choose one of `select`, `box`, `brush`, `lasso` and `eraser`."""
        self.page.locator(f"input[name=tool][value={name}]").check(force=True)

    def draw_box(self, box: tuple[float, float, float, float], prompt: str) -> None:
        """Draw a box as a region of its own and say what it shows."""
        left, top, right, bottom = box
        self.use_tool("box")
        self.drag([(left, top), (right, bottom)])
        self.page.locator(".region-card.is-selected textarea").fill(prompt)

    def paint(self, points: Sequence[tuple[float, float]], prompt: str) -> None:
        """Paint a region of its own and say what it shows."""
        self.page.get_by_role("button", name="Add empty").click()
        self.use_tool("brush")
        self.drag(points)
        self.page.locator(".region-card.is-selected textarea").fill(prompt)

    def say(self, prompt: str) -> None:
        """Type the prompt of the whole image."""
        self.page.get_by_label("The whole image").fill(prompt)

    def open_panel(self, name: str) -> None:
        """Unfold a panel of the settings: `settings`, `loras`, `methods`, `images`, `pipeline`, `job` and others."""
        self.page.locator(f"#panel-{name}").evaluate("panel => panel.open = true")

    def set_call(self, name: str, value: str) -> None:
        """Type a value of the settings."""
        self.open_panel("settings")
        field = self.page.locator(f"[data-field='call.{name}']")
        field.locator("input, textarea").first.fill(value)
        field.locator("input, textarea").first.blur()

    def add_condition(self, type_: str) -> None:
        """Add a method by the class of its condition."""
        self.page.locator("#add-method").click()
        self.page.locator(f"dialog [data-condition='{type_}']").click()

    def job(self) -> dict[str, Any]:
        """Return the job that the page shows."""
        return json.loads(self.page.locator("#job-json").input_value())

    def generate(self) -> str:
        """Generate, wait until that has ended, and return what the page says of it."""
        self.start()
        return self.wait()

    def start(self) -> None:
        """Generate."""
        self.page.locator("#generate").click()

    def wait(self) -> str:
        """Wait until nothing is drawn any longer, and return what the page says."""
        self.until("!document.getElementById('generate').disabled")
        return self.page.locator("#bar .status").inner_text()

    def until(self, expression: str) -> None:
        """Wait until an expression is true, without `eval` in the page, which its security policy forbids."""
        end = time.monotonic() + DRAWN_SECONDS
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"Not within {DRAWN_SECONDS} s: {expression}")
            self.page.wait_for_timeout(20)

    def result(self) -> bytes:
        """Return the bytes of the image that is shown."""
        url = self.page.locator("#result-image").get_attribute("src") or ""
        return self.page.request.get(f"{self.address}{url}").body()

    def problems(self) -> list[str]:
        """Return what the page says is to be changed."""
        return self.page.locator(".problems li").all_inner_texts()

    def error_at(self, place: str) -> str:
        """Return the error text at a field."""
        return self.page.locator(f"[data-field='{place}'] .error").first.inner_text()
