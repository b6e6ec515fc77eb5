"""The page by keyboard, on a phone, light and dark, and for assistive technology."""

from pathlib import Path

import pytest


pytestmark = pytest.mark.browser

CHECK = (Path(__file__).parent / "accessibility.js").read_text(encoding="utf-8").partition("\n")[2]
METHODS = ["ControlNetImage", "AttributeValues", "InpaintRegion", "LoRAEmbedding", "InfiniteYouIdentity"]


def unfold(flux):
    flux.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")


def fill(flux):
    """Put something into every part of the page."""
    flux.draw_box((0.1, 0.3, 0.45, 0.7), "a red circle")
    flux.paint([(0.6, 0.4), (0.85, 0.6)], "a blue star")
    for type_ in METHODS:
        flux.add_condition(type_)
    flux.start()
    unfold(flux)


def press_until(flux, selector, key="Tab", most=120):
    """Press a key until an element has the focus."""
    for _ in range(most):
        if flux.page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        flux.page.keyboard.press(key)
    raise AssertionError(f"{selector} is not reached by {key}")


def test_an_image_is_made_with_the_keyboard_alone(flux):
    page, keyboard = flux.page, flux.page.keyboard
    press_until(flux, ".skip")
    keyboard.press("Enter")
    press_until(flux, "#prompt textarea")
    keyboard.type("a white background")
    press_until(flux, "#generate")
    press_until(flux, "#regions button")
    keyboard.press("Enter")
    page.wait_for_selector(".region-card")
    press_until(flux, ".region-card textarea", "Shift+Tab")
    keyboard.type("a red circle")
    for value in ("10", "20", "50", "60"):
        press_until(flux, ".box-numbers input")
        keyboard.press("Control+A")
        keyboard.type(value)
        keyboard.press("Tab")
    assert flux.job()["conditions"][0]["masks"] == [[0.1, 0.2, 0.5, 0.6]]
    press_until(flux, "#canvas", "Shift+Tab")
    keyboard.press("ArrowRight")
    keyboard.press("Shift+ArrowDown")
    assert flux.job()["conditions"][0]["masks"] == [[0.11, 0.2, 0.51, 0.61]]
    press_until(flux, "[data-field='call.num_inference_steps'] input")
    keyboard.press("Control+A")
    keyboard.type("2")
    keyboard.press("Control+Enter")
    page.wait_for_selector("#result-image[src*='/images/0']")
    assert flux.wait().startswith("Done")


def test_tools_tabs_and_dialogs_answer_to_keys(flux):
    flux.page.locator("#canvas").focus()
    flux.page.keyboard.press("p")
    assert flux.page.locator("input[name=tool]:checked").get_attribute("value") == "brush"
    flux.page.locator("#tab-draw").focus()
    flux.page.keyboard.press("ArrowRight")
    assert flux.page.evaluate("document.activeElement.id") == "tab-result"
    assert flux.page.locator("#view-result").is_visible()
    flux.page.locator("#add-method").focus()
    flux.page.keyboard.press("Enter")
    assert flux.page.locator("dialog").is_visible()
    flux.page.keyboard.press("Escape")
    assert not flux.page.locator("dialog").is_visible()
    assert flux.page.evaluate("document.activeElement.id") == "add-method"


def test_nothing_is_wider_than_the_window(flux):
    fill(flux)
    for width in (390, 820, 1240):
        flux.page.set_viewport_size({"width": width, "height": 844})
        check_width(flux, width)
    flux.page.locator("#tab-draw").click()
    flux.page.locator("#add-method").click()
    check_width(flux, width)


def check_width(flux, width):
    assert flux.page.evaluate("document.documentElement.scrollWidth") <= width
    wider = flux.page.evaluate(
        """[...document.querySelectorAll("main *")]
            .filter((each) => each.checkVisibility() && !each.closest(".sr-only"))
            .filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
            .map((each) => `${each.tagName} ${each.className}`)"""
    )
    assert wider == []


def test_everything_has_a_name_and_can_be_read(flux):
    fill(flux)
    backgrounds = set()
    for scheme in ("light", "dark"):
        flux.page.emulate_media(color_scheme=scheme)
        backgrounds.add(flux.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert flux.page.evaluate(CHECK) == []
        flux.page.locator("#add-method").click()
        assert flux.page.evaluate(CHECK) == []
        flux.page.keyboard.press("Escape")
    assert len(backgrounds) == 2


def test_the_check_of_accessibility_finds_what_is_wrong(flux):
    flux.page.evaluate(
        """() => {
            const [input, faint] = [document.createElement("input"), document.createElement("p")];
            faint.className = "hint";
            faint.textContent = "faint";
            faint.style.color = "#bbb";
            faint.setAttribute("aria-describedby", "nowhere");
            document.querySelector("main").append(input, faint, new Image());
        }"""
    )
    found = "\n".join(flux.page.evaluate(CHECK))
    assert all(
        part in found for part in ("input#-.- has no name", "has no text", "names nowhere", "p#-.hint has a contrast")
    )


def test_every_focus_is_seen(flux):
    for _ in range(25):
        flux.page.keyboard.press("Tab")
        outlined = flux.page.evaluate(
            "(() => { for (let at = document.activeElement, up = 0; at && up < 3; at = at.parentElement, up += 1) "
            "if (getComputedStyle(at).outlineStyle !== 'none') return true; return false; })()"
        )
        assert outlined, flux.page.evaluate("document.activeElement.outerHTML.slice(0, 200)")


def test_the_switch_makes_the_page_dark_and_is_kept(flux):
    color = "getComputedStyle(document.body).backgroundColor"
    before = flux.page.evaluate(color)
    flux.page.locator("input[name=theme][value=dark]").check(force=True)
    dark = flux.page.evaluate(color)
    assert dark != before
    flux.page.reload()
    assert flux.page.evaluate(color) == dark
