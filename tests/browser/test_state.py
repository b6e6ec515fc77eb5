"""What the page keeps: the draft, the history, the job as JSON."""

import io
import json

import pytest
from PIL import Image


pytestmark = pytest.mark.browser

BOX = (0.2, 0.2, 0.6, 0.6)


def png(color="red"):
    data = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(data, "PNG")
    return {"name": "image.png", "mimeType": "image/png", "buffer": data.getvalue()}


def test_a_reload_keeps_the_draft_with_its_images(flux):
    flux.draw_box(BOX, "a red circle")
    flux.page.get_by_label("Name of Region 1").fill("Sun")
    flux.say("a white background")
    flux.set_call("seed", "7")
    flux.open_panel("images")
    flux.page.locator("[data-field='call.image'] input[type=file]").set_input_files([png()])
    flux.page.wait_for_selector("[data-field='call.image'] img[src^=blob]")
    before = flux.job()
    assert before["call"]["image"].startswith("upload:")
    flux.page.reload()
    flux.page.wait_for_selector("#app:not([hidden])")
    assert flux.job() == before
    assert flux.page.get_by_label("Name of Sun").input_value() == "Sun"
    flux.open_panel("images")
    image = flux.page.wait_for_selector("[data-field='call.image'] img[src^=blob]")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32


def test_a_reload_goes_on_with_the_job_that_is_drawn(flux):
    flux.say("a red circle")
    flux.set_call("num_inference_steps", "40")
    flux.start()
    flux.until("document.querySelector('#bar .status').textContent.startsWith('Step')")
    flux.page.reload()
    flux.page.wait_for_selector("#cancel:not([hidden])")
    assert flux.wait().startswith("Done")


def test_the_history_gives_a_job_back_and_compares_two(flux):
    flux.draw_box(BOX, "a red circle")
    flux.page.get_by_label("Name of Region 1").fill("Sun")
    flux.set_call("num_inference_steps", "2")
    assert flux.generate().startswith("Done")
    first = flux.job()
    flux.set_call("seed", "5")
    assert flux.generate().startswith("Done")
    flux.page.locator("#tab-draw").click()
    flux.page.get_by_role("button", name="Delete Sun").click()

    items = flux.page.locator(".history-item")
    items.nth(1).get_by_role("button", name="Use again").click()
    assert flux.job() == first
    assert flux.page.get_by_label("Name of Sun").input_value() == "Sun"

    for index in (0, 1):
        items.nth(index).get_by_role("button", name="Compare").click()
    compared = flux.page.locator("#view-compare img")
    assert [compared.nth(index).is_visible() for index in (0, 1)] == [True, True]
    assert compared.nth(0).get_attribute("src") != compared.nth(1).get_attribute("src")
    flux.page.get_by_label("Share of the first image").press("ArrowLeft")
    assert compared.nth(0).evaluate("image => getComputedStyle(image).clipPath") != "none"
    flux.page.locator("input[name=compare][value=sides]").check(force=True)
    assert compared.nth(0).evaluate("image => getComputedStyle(image).clipPath") == "none"

    count = items.count()
    items.nth(0).get_by_role("button", name="Delete").click()
    flux.until(f"document.querySelectorAll('.history-item').length === {count - 1}")


def test_a_job_is_copied_saved_and_loaded(flux, tmp_path):
    flux.draw_box(BOX, "a red circle")
    flux.say("a white background")
    flux.open_panel("job")
    job = flux.job()
    flux.page.get_by_role("button", name="Copy").click()
    assert json.loads(flux.page.evaluate("navigator.clipboard.readText()")) == job
    with flux.page.expect_download() as download:
        flux.page.get_by_role("button", name="Save", exact=True).click()
    download.value.save_as(tmp_path / "job.json")
    assert json.loads((tmp_path / "job.json").read_text()) == job

    flux.page.get_by_role("button", name="Delete Region 1").click()
    assert "conditions" not in flux.job()
    flux.page.locator("#job-file").set_input_files(tmp_path / "job.json")
    flux.page.wait_for_selector(".region-card")
    assert flux.job() == job


def test_an_image_of_the_server_gives_its_job_back(flux, tmp_path):
    flux.draw_box(BOX, "a red circle")
    flux.say("a white background")
    flux.set_call("num_inference_steps", "2")
    assert flux.generate().startswith("Done")
    job = flux.job()
    (tmp_path / "result.png").write_bytes(flux.result())
    flux.page.locator("#tab-draw").click()
    flux.page.get_by_role("button", name="Delete Region 1").click()
    flux.page.locator("#job-file").set_input_files(tmp_path / "result.png")
    flux.page.wait_for_selector(".region-card")
    assert flux.job()["conditions"] == job["conditions"]
    assert flux.job()["call"]["prompt"] == "a white background"


def test_changed_json_is_applied(flux):
    flux.open_panel("job")
    job = {**flux.job(), "conditions": [{"type": "EntityRegions", "prompts": ["a star"], "masks": [[0, 0, 0.5, 0.5]]}]}
    flux.page.locator("#job-json").fill(json.dumps(job))
    flux.page.get_by_role("button", name="Apply changes").click()
    assert flux.page.locator(".region-card textarea").input_value() == "a star"
    assert flux.job()["conditions"] == job["conditions"]


def test_regions_of_methods_come_onto_the_canvas_with_a_job(flux):
    flux.open_panel("job")
    mask = {"polygon": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]}
    job = {**flux.job(), "conditions": [{"type": "InpaintRegion", "image": "upload:" + "0" * 64, "mask": mask}]}
    flux.page.locator("#job-json").fill(json.dumps(job))
    flux.page.get_by_role("button", name="Apply changes").click()
    assert flux.page.locator(".region-card").count() == 1
    assert flux.job()["conditions"] == job["conditions"]
