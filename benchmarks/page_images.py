"""Images of the server's page for the documentation, taken in a browser from `flux-ext serve --model tiny`.

python -m benchmarks.page_images --out docs/images
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from benchmarks.support.browser import LEFT, ZIGZAG, FluxPage, missing_browser, open_browser, serve_tiny


if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

DESKTOP: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
COLORS = 256


def draw(flux: FluxPage) -> None:
    """Draw two regions, one a box and one painted."""
    flux.draw_box(LEFT, "a red circle")
    flux.paint(ZIGZAG, "a blue square")
    flux.say("a white background")
    flux.page.mouse.move(0, 0)
    flux.until("!document.querySelector('.toast')")


def result(flux: FluxPage) -> None:
    """Generate three images, and show the last one in the dark."""
    for prompt in ("a green star", "a yellow triangle", "a red circle"):
        flux.page.locator(".region-card textarea").first.fill(prompt)
        flux.generate()
    flux.page.emulate_media(color_scheme="dark")
    flux.page.evaluate("scrollTo(0, 0)")
    flux.page.locator("#generate").blur()


def compare(flux: FluxPage) -> None:
    """Compare two of them, with a slider between them."""
    for index in (0, 1):
        flux.page.locator(".history-item").nth(index).get_by_role("button", name="Compare").click()
    for _ in range(23):
        flux.page.get_by_label("Share of the first image").press("ArrowLeft")
    flux.page.evaluate("document.activeElement.blur()")
    flux.page.emulate_media(color_scheme="light")


def methods(flux: FluxPage) -> None:
    """Show a method's panel, made from the schema."""
    flux.page.locator("#tab-draw").click()
    flux.add_condition("ControlNetImage")
    flux.page.locator("#panel-methods").get_by_role("button", name="Use the last result").first.click()
    flux.page.locator("#panel-methods img").wait_for()
    flux.page.locator("#panel-methods").evaluate("panel => panel.scrollIntoView({ block: 'center' })")


def phone(flux: FluxPage) -> None:
    """Show the same on a phone."""
    flux.page.set_viewport_size(PHONE)
    flux.page.evaluate("scrollTo(0, 0)")
    flux.page.evaluate("document.activeElement.blur()")


SCENES: dict[str, Callable[[FluxPage], None]] = {
    "page_draw": draw,
    "page_result": result,
    "page_compare": compare,
    "page_methods": methods,
    "page_phone": phone,
}


def main() -> None:
    """Write one image for each scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the images")
    args = parser.parse_args()
    if missing := missing_browser():
        parser.error(missing)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, open_browser() as browser, serve_tiny(Path(state)) as address:
        flux = FluxPage(browser.new_page(viewport=DESKTOP, reduced_motion="reduce"), address).open()
        for name, prepare in SCENES.items():
            prepare(flux)
            flux.page.wait_for_timeout(300)
            shot = Image.open(io.BytesIO(flux.page.screenshot())).convert("RGB")
            shot.quantize(COLORS).save(args.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
