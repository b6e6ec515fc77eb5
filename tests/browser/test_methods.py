"""Every method of the package can be reached, with what its schema says of it."""

import re

import pytest

from tests.browser.test_state import png


pytestmark = pytest.mark.browser


@pytest.fixture
def options(flux):
    return flux.page.request.get(f"{flux.address}/api/options").json()


@pytest.fixture
def schema(flux):
    return flux.page.request.get(f"{flux.address}/api/schema").json()


def test_every_condition_has_a_panel_with_its_fields_and_help_texts(flux, options, schema):
    types = [name for method in options["methods"] for name in method["conditions"] if name != "EntityRegions"]
    assert len(types) >= 12
    for type_ in types:
        flux.add_condition(type_)
        card = flux.page.locator("#panel-methods .card").last
        names = card.locator("[data-field]").evaluate_all(
            "all => all.map(each => each.dataset.field.split('.').pop())"
        )
        properties = schema["$defs"][type_]["properties"]
        needed = set(schema["$defs"][type_]["required"]) - {"type"}
        assert needed <= set(names) <= set(properties)
        modules = {name for name, each in properties.items() if each.get("x-kind") == "module"}
        assert set(properties) - {"type"} - modules <= set(names)
        help_texts = card.locator(".help").all_text_contents()
        for name in needed:
            words = re.match("[^`[(.]*", properties[name]["description"])[0].strip()
            assert words
            assert any(words[:30] in text for text in help_texts), name
    assert flux.page.locator("#panel-methods .card").count() == len(types)


def test_every_pipeline_has_its_own_arguments(flux, options, schema):
    pipelines = [name for method in options["methods"] for name in method["pipelines"]]
    assert len(pipelines) >= 6
    for name in pipelines:
        flux.page.locator("#add-method").click()
        flux.page.locator(f"dialog [data-pipeline='{name}']").click()
        assert flux.job()["pipeline"] == name
        shown = set(
            flux.page.locator("[data-field^='call.']").evaluate_all("all => all.map(each => each.dataset.field)")
        )
        assert {f"call.{each}" for each in schema["$defs"][f"{name}Call"]["properties"]} == shown


def test_a_painted_region_is_the_mask_of_a_method(flux):
    flux.say("a white background")
    flux.set_call("num_inference_steps", "2")
    flux.use_tool("box")
    flux.drag([(0.5, 0.2), (0.95, 0.8)])
    flux.add_condition("InpaintRegion")
    card = flux.page.locator("#panel-methods .card")
    card.locator("input[type=file]").first.set_input_files([png("blue")])
    card.locator("img[src^=blob]").wait_for()
    card.get_by_label("Mask", exact=False).first.select_option(label="Region 1")
    job = flux.job()
    assert job["conditions"][0]["mask"] == pytest.approx([0.5, 0.2, 0.95, 0.8], abs=0.005)
    assert flux.page.request.post(f"{flux.address}/api/check", data=job).ok
    assert flux.generate().startswith("Done")


def test_modules_of_the_server_are_chosen_where_they_fit(flux, options):
    offered = {each["name"]: each["class"] for each in options["modules"]}
    flux.add_condition("ControlNetImage")
    choices = flux.page.locator("#panel-methods .card select").first.locator("option").all_inner_texts()
    fitting = [name for name, class_ in offered.items() if class_ == "FluxControlNetModel"]
    assert fitting
    assert choices[1:] == fitting


def test_a_file_is_dropped_and_the_last_result_is_used(flux):
    flux.open_panel("images")
    flux.page.locator("[data-field='call.image'] .drop").evaluate(
        """async (area) => {
            const canvas = new OffscreenCanvas(8, 8);
            canvas.getContext("2d").fillRect(0, 0, 8, 8);
            const moved = new DataTransfer();
            moved.items.add(new File([await canvas.convertToBlob()], "a.png", { type: "image/png" }));
            area.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
        }"""
    )
    flux.page.wait_for_selector("[data-field='call.image'] img[src^=blob]")
    dropped = flux.job()["call"]["image"]
    flux.set_call("num_inference_steps", "2")
    assert flux.generate().startswith("Done")
    flux.page.locator("[data-field='call.image']").get_by_role("button", name="Remove this image").click()
    flux.page.locator("[data-field='call.image']").get_by_role("button", name="Use the last result").click()
    flux.page.wait_for_selector("[data-field='call.image'] img[src^=blob]")
    assert flux.job()["call"]["image"] != dropped


def test_loras_have_weights_and_what_is_known_of_their_files(flux, options):
    for lora in options["loras"]:
        flux.page.locator("#lora-choice").select_option(lora["name"])
        flux.page.locator(f"#lora-{lora['name']}").fill("0.5")
    assert flux.job()["loras"] == [{"path": each["name"], "weight": 0.5} for each in options["loras"]]
    facts = flux.page.locator("#panel-loras .facts").first.inner_text()
    known = options["loras"][0]["inspect"]
    assert known["format"] in facts
    assert next(iter(known["ranks"])) in facts
    flux.page.get_by_role("button", name=f"Remove {options['loras'][0]['name']}").click()
    assert len(flux.job().get("loras", [])) == len(options["loras"]) - 1
