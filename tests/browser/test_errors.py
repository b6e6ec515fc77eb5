"""Whatever is wrong is said in words, where it is."""

import json

import pytest

from tests.browser.test_state import BOX, png


pytestmark = pytest.mark.browser


def test_a_value_that_is_no_number_is_named_as_soon_as_it_is_typed(flux):
    for name, value, says in [
        ("num_inference_steps", "many", "Got many; expected a whole number."),
        ("num_inference_steps", "2.5", "Got 2.5; expected a whole number."),
        ("true_cfg_scale", "1, 2", "True CFG takes one number, got 2."),
        ("seed", "-1", "Got -1; expected 0 or more."),
    ]:
        flux.set_call(name, value)
        assert flux.error_at(f"call.{name}") == says
        assert flux.page.locator(f"[data-field='call.{name}'] [aria-invalid=true]").count() == 1
        flux.set_call(name, "4")
        assert flux.error_at(f"call.{name}") == ""


def test_what_the_server_refuses_is_shown_at_the_fields(flux):
    flux.set_call("num_inference_steps", "0")
    flux.set_call("width", "30000")
    flux.start()
    flux.page.wait_for_selector(".problems li")
    assert len(flux.problems()) >= 1
    shown = [flux.error_at("call.num_inference_steps"), flux.error_at("call.width")]
    assert any(shown)
    assert set(filter(None, shown)) <= set(flux.problems())
    flux.page.locator(".problems button").first.click()
    assert flux.page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"


def test_a_region_without_a_prompt_is_named_before_anything_is_sent(flux):
    flux.use_tool("box")
    flux.drag([(0.2, 0.2), (0.6, 0.6)])
    flux.start()
    says = "Say what Region 1 shows, use it in a method, or delete it."
    assert flux.problems() == [says]
    assert flux.page.locator(".region-card .error").first.inner_text() == says
    flux.page.locator(".problems button").click()
    flux.page.keyboard.type("a red circle")
    assert flux.page.locator(".region-card .error").first.inner_text() == ""


def test_a_box_whose_sides_are_swapped_is_named(flux):
    flux.draw_box(BOX, "a red circle")
    right = flux.page.get_by_role("group", name="Box in percent of Region 1").get_by_label("Right")
    right.fill("10")
    right.blur()
    assert "The right side must be beyond the left one." in flux.page.locator(".region-card .error").all_inner_texts()
    assert flux.job()["conditions"][0]["masks"][0] == pytest.approx(BOX, abs=0.005)


def test_a_method_without_its_inputs_names_them(flux):
    flux.add_condition("ControlNetImage")
    flux.start()
    assert flux.problems() == ["Image of ControlNet is needed."]


def test_files_that_are_no_images_are_refused_in_words(flux):
    flux.open_panel("images")
    field = flux.page.locator("[data-field='call.image']")
    text = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no image"}
    field.locator("input[type=file]").set_input_files([text])
    flux.until("document.querySelector(\"[data-field='call.image'] .error\").textContent")
    assert flux.error_at("call.image") == "Got text/plain; expected a PNG, JPEG or WebP image."
    field.locator("input[type=file]").set_input_files([{**text, "mimeType": "image/png"}])
    flux.until("/^(?!.*text\\/)./.test(document.querySelector(\"[data-field='call.image'] .error\").textContent)")
    assert "image" in flux.error_at("call.image")
    field.locator("input[type=file]").set_input_files([png()])
    flux.page.wait_for_selector("[data-field='call.image'] img")
    assert flux.error_at("call.image") == ""


def test_json_that_is_no_job_is_refused_in_words(flux):
    flux.open_panel("job")
    for text, says in [("{", "This is not JSON"), ("[1]", "A job is an object in braces.")]:
        flux.page.locator("#job-json").fill(text)
        flux.page.get_by_role("button", name="Apply changes").click()
        assert flux.page.locator("#panel-job .error").inner_text().startswith(says)


def test_what_the_server_refuses_of_a_method_is_shown_in_its_panel(flux):
    flux.open_panel("job")
    conditions = [
        {"type": "EntityRegions", "prompts": ["a star"], "masks": [[0.1, 0.1, 0.5, 0.5]]},
        {"type": "InpaintRegion", "image": "upload:" + "0" * 64, "mask": [0.5, 0.5, 0.9, 0.9]},
    ]
    flux.page.locator("#job-json").fill(json.dumps({**flux.job(), "conditions": conditions}))
    flux.page.get_by_role("button", name="Apply changes").click()
    flux.start()
    flux.page.wait_for_selector(".problems li")
    shown = flux.page.locator("#panel-methods [data-field$='.image'] .error").first.inner_text()
    assert shown
    assert shown in flux.problems()


def test_a_server_that_is_gone_is_named(flux):
    flux.page.route("**/api/jobs", lambda route: route.abort())
    flux.say("a red circle")
    flux.start()
    flux.page.wait_for_selector(".problems li")
    assert flux.problems() == ["The server does not answer. Is it still running?"]
