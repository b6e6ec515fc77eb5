"""From an empty page to an image."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.support.browser import LEFT, ZIGZAG
from diffusers_flux_ext.flux_shapes import detect_objects
from diffusers_flux_ext.jobs import JobFiles, JobRunner, read_job


pytestmark = pytest.mark.browser

RIGHT = (0.54, 0.3, 0.92, 0.7)


def named(job):
    """A job of the page as the command line has it: the tiny model's LoRA by its file."""
    return {**job, "loras": [{"path": "tiny", "weight": each["weight"]} for each in job["loras"]]}


def test_painted_regions_are_drawn_in_their_places_with_the_pixels_of_the_python_call(flux):
    flux.draw_box(LEFT, "a red circle")
    flux.paint(ZIGZAG, "a blue square")
    flux.say("a white background")
    assert flux.generate().startswith("Done")
    shown = Image.open(io.BytesIO(flux.result())).convert("RGB")
    job = flux.job()

    found = {(each.color, each.shape): each.center for each in detect_objects(shown)}
    for (color, shape), (left, top, right, bottom) in {("red", "circle"): LEFT, ("blue", "square"): RIGHT}.items():
        x, y = (part / 128 for part in found[color, shape])
        assert left < x < right
        assert top < y < bottom
    assert [set(mask) if isinstance(mask, dict) else mask for mask in job["conditions"][0]["masks"]] == [
        pytest.approx(LEFT, abs=0.005),
        {"strokes"},
    ]
    drawn = JobRunner(device="cpu").run(read_job(named(job)), JobFiles()).images[0]
    assert np.array_equal(np.asarray(shown), np.asarray(drawn))


def test_a_cancelled_job_stops_and_says_so(flux):
    flux.say("a white background")
    flux.set_call("num_inference_steps", "100")
    flux.start()
    flux.until("document.querySelector('#bar .status').textContent.startsWith('Step')")
    flux.page.get_by_role("button", name="Cancel").click()
    assert flux.wait() == "Cancelled."
    newest = flux.page.request.get(f"{flux.address}/api/jobs?limit=1").json()["jobs"][0]
    assert newest["status"] == "cancelled"
    assert newest["step"] < 100


def test_a_preview_is_shown_while_an_image_is_drawn(flux):
    flux.say("a red circle")
    flux.set_call("num_inference_steps", "20")
    flux.start()
    flux.page.wait_for_selector("#result-image[src^='data:image']")
    assert flux.page.locator("#tab-result").get_attribute("aria-selected") == "true"
    assert 0 < flux.page.locator("progress").evaluate("meter => meter.value") <= 1
    assert flux.wait().startswith("Done")
    assert "/images/0" in flux.page.locator("#result-image").get_attribute("src")


def test_regions_are_renamed_recoloured_reordered_and_deleted(flux):
    flux.draw_box(LEFT, "a red circle")
    flux.draw_box(RIGHT, "a blue star")
    page = flux.page
    page.get_by_label("Name of Region 1").fill("Sun")
    page.get_by_label("Colour of Sun").evaluate(
        """node => {
            node.value = "#00ff00";
            node.dispatchEvent(new Event("input"));
            node.dispatchEvent(new Event("change"));
        }"""
    )
    page.get_by_role("button", name="Move down Sun").click()
    assert flux.job()["conditions"][0]["prompts"] == ["a blue star", "a red circle"]
    assert page.get_by_label("Name of Sun").input_value() == "Sun"
    assert page.get_by_label("Colour of Sun").input_value() == "#00ff00"
    page.get_by_role("button", name="Delete Region 2").click()
    assert flux.job()["conditions"][0]["prompts"] == ["a red circle"]


def test_what_was_drawn_is_undone_and_done_again(flux):
    flux.draw_box(LEFT, "a red circle")
    flux.page.locator("#canvas").press("ArrowRight")
    moved = flux.job()["conditions"][0]["masks"]
    flux.page.get_by_role("button", name="Undo").click()
    assert flux.job()["conditions"][0]["masks"][0] == pytest.approx(LEFT, abs=0.005)
    flux.page.get_by_role("button", name="Redo").click()
    assert flux.job()["conditions"][0]["masks"] == moved


def test_a_box_is_moved_and_resized_by_the_mouse(flux):
    flux.draw_box((0.2, 0.2, 0.6, 0.6), "a red circle")
    flux.use_tool("select")
    flux.drag([(0.4, 0.4), (0.5, 0.45)])
    assert flux.job()["conditions"][0]["masks"][0] == pytest.approx((0.3, 0.25, 0.7, 0.65), abs=0.01)
    flux.drag([(0.7, 0.65), (0.9, 0.8)])
    assert flux.job()["conditions"][0]["masks"][0] == pytest.approx((0.3, 0.25, 0.9, 0.8), abs=0.01)


def test_what_was_painted_is_erased_stroke_by_stroke(flux):
    flux.paint([(0.2, 0.5), (0.8, 0.5)], "a red circle")
    flux.use_tool("eraser")
    flux.drag([(0.5, 0.3), (0.5, 0.7)])
    strokes = flux.job()["conditions"][0]["masks"][0]["strokes"]
    assert [stroke.get("erase", False) for stroke in strokes] == [False, True]
    colors = flux.page.locator("#canvas").evaluate(
        """canvas => {
            const at = (x) => canvas.getContext("2d").getImageData(x * canvas.width, canvas.height / 2, 1, 1).data[3];
            return [at(0.5), at(0.25)];
        }"""
    )
    assert [alpha > 0 for alpha in colors] == [False, True]


def test_an_area_is_drawn_with_the_lasso(flux):
    flux.use_tool("lasso")
    flux.drag([(0.2, 0.2), (0.8, 0.2), (0.5, 0.8)])
    flux.page.locator(".region-card textarea").fill("a red triangle")
    assert len(flux.job()["conditions"][0]["masks"][0]["polygon"]) >= 3


def test_a_click_draws_nothing_and_says_what_to_do(flux):
    flux.drag([(0.5, 0.5), (0.501, 0.501)])
    assert flux.page.locator(".region-card").count() == 0
    assert flux.page.locator("#toasts").inner_text() == "Drag to draw a box."
