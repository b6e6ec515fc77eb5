"""A server of the embedded tiny model."""

import base64
import io
import json

import numpy as np
import openai
import pytest
import torch
from diffusers import FluxControlNetModel
from PIL import Image
from starlette.testclient import TestClient

import diffusers_flux_ext as dfx
from diffusers_flux_ext.server.assemble import Settings, make_server
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.offers import make_served
from diffusers_flux_ext.tiny import TINY_CALL, named_lora

from .conftest import listening, submit, wait_for


STEPS = 3
ENTITIES = {"type": "EntityRegions", "prompts": ["a red circle"], "masks": [[0.1, 0.3, 0.45, 0.7]]}
CONTROL, MODULE = {"type": "ControlNetImage", "image": "x"}, "conditions.0.controlnet"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The state folder."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def client(state):
    """A client of a server of the tiny model under two names."""
    served = make_served(
        [("tiny", {"path": "tiny"}), ("second", {"path": "tiny"})], [("own", named_lora("tiny"), 0.5)]
    )
    app, _ = make_server(Settings(served, state, Limits(queue=20), device="cpu"))
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def pipe():
    """The pipeline that Python calls directly."""
    return dfx.FluxConditionedPipeline.from_pretrained(dfx.tiny_flux_path(), dtype=torch.float32)


def call(seed=0, **more):
    """The `call` of a job."""
    return {"prompt": "a white background", "num_inference_steps": STEPS, "seed": seed, **more}


def direct(pipe, seed=0, **more):
    """The pixels of the call in Python."""
    arguments = {**TINY_CALL, **call(seed), **more}
    generator = torch.Generator().manual_seed(arguments.pop("seed"))
    return [np.asarray(image) for image in pipe(**arguments, generator=generator).images]


def drawn(client, job):
    """The pixels of a job on the server."""
    record = wait_for(client, client.post("/api/jobs", json=job).json()["id"])
    assert record["status"] == "done", record["error"]
    return [np.asarray(Image.open(io.BytesIO(client.get(image["url"]).content))) for image in record["images"]]


def data_url(image):
    """An image as a job may hold it."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def test_pixels_are_those_of_the_call_in_python(client, pipe):
    assert np.array_equal(drawn(client, {"call": call(4)}), direct(pipe, 4))


def test_regions_and_loras_are_drawn_as_in_python_and_leave_no_trace(client, pipe):
    job = {"call": call(1), "conditions": [ENTITIES], "loras": ["own"]}
    with_entities = drawn(client, job)
    assert np.array_equal(drawn(client, {"call": call(4)}), direct(pipe, 4))
    pipe.load_lora_weights(named_lora("tiny"), adapter_name="own")
    pipe.set_adapters("own", 0.5)
    regions = dfx.EntityRegions(ENTITIES["prompts"], [tuple(ENTITIES["masks"][0])])
    assert np.array_equal(with_entities, direct(pipe, 1, conditions=[regions]))
    pipe.unload_lora_weights()


def test_images_and_modules_that_the_server_offers_are_used(client, pipe):
    outlines = Image.linear_gradient("L").convert("RGB").resize((128, 128))
    condition = {
        "type": "ControlNetImage", "controlnet": "tiny_flux_controlnet", "image": data_url(outlines), "scale": 0.7,
    }  # fmt: skip
    controlnet = FluxControlNetModel.from_pretrained(
        f"{dfx.tiny_flux_path()}/../tiny_flux_controlnet", torch_dtype=torch.float32
    ).requires_grad_(False)
    expected = direct(pipe, 2, conditions=[dfx.ControlNetImage(controlnet, outlines, scale=0.7)])
    assert np.array_equal(drawn(client, {"call": call(2), "conditions": [condition]}), expected)


def test_two_clients_and_two_models_are_never_mixed_up(client, pipe):
    expected = {seed: direct(pipe, seed) for seed in range(3)}
    names = [
        (seed, submit(client, who=who, call=call(seed), model=model))
        for seed in range(3)
        for who, model in (("first", "tiny"), ("second", "tiny"), ("first", "second"))
    ]
    for seed, name in names:
        record = wait_for(client, name)
        image = Image.open(io.BytesIO(client.get(record["images"][0]["url"]).content))
        assert np.array_equal([np.asarray(image)], expected[seed])


def test_an_image_holds_its_job_without_places(client, state):
    record = wait_for(client, submit(client, call=call(5), loras=["own"], conditions=[ENTITIES]))
    image = Image.open(io.BytesIO(client.get(record["images"][0]["url"]).content))
    found = json.loads(image.info["flux_ext_job"])
    assert found["loras"] == [{"path": "own"}]
    assert found["conditions"] == [ENTITIES]
    for text in (json.dumps(found), json.dumps(record)):
        assert str(state) not in text
        assert str(dfx.tiny_flux_path()) not in text


@pytest.mark.parametrize(
    "job, field",
    [
        ({"call": {"prompts": "x"}}, "call.prompts"),
        ({"pipeline": "NoPipeline"}, "pipeline"),
        ({"conditions": [{"type": "NoCondition"}]}, "conditions.0"),
        ({"conditions": [{**ENTITIES, "masks": [[0.5, 0, 0.1, 1]]}]}, "conditions.0.masks.0"),
        ({"conditions": [{**ENTITIES, "masks": ["/etc/passwd"]}]}, "conditions.0.masks.0"),
        ({"conditions": [{**ENTITIES, "masks": [{"file": "/x", "sha256": "0" * 64}]}]}, "conditions.0.masks.0"),
        ({"call": {"image": "http://example.org/a.png"}}, "call.image"),
        ({"conditions": [{**CONTROL, "controlnet": "/etc"}]}, f"{MODULE}.path"),
        ({"conditions": [{**CONTROL, "controlnet": {"path": "tiny", "subfolder": ".."}}]}, f"{MODULE}.subfolder"),
        ({"loras": ["../../style.safetensors"]}, "loras.0.path"),
        ({"loras": [{"path": "tiny", "weight_name": "../../x.safetensors"}]}, "loras.0.weight_name"),
        ({"components": {"vae": "/srv"}}, "components.vae.path"),
        ({"components": {"vae": "owner/repository"}}, "components.vae.path"),
        ({"additions": {"lora_fusion": "owner/repository"}}, "additions.lora_fusion.path"),
        ({"model": {"path": "tiny", "base": "/etc"}}, "model.base"),
        ({"call": {"image": f"upload:{'0' * 64}"}}, "call.image"),
    ],
)  # fmt: skip
def test_no_place_can_be_named_and_every_wrong_field_is(client, job, field):
    answer = client.post("/api/jobs", json={"call": call(), **job} if "call" not in job else job)
    assert answer.status_code == 422, answer.text
    assert field in [problem["field"] for problem in answer.json()["error"]["problems"]]
    for secret in ("root:", "Traceback", "/tmp"):
        assert secret not in answer.text


def test_options_say_what_may_be_named(client):
    options = client.get("/api/options").json()
    assert [model["name"] for model in options["models"]] == ["tiny", "second"]
    assert options["models"][0]["call"] == TINY_CALL
    loras = {lora["name"]: lora for lora in options["loras"]}
    assert loras["own"]["weight"] == 0.5
    assert loras["own"]["inspect"]["ranks"]
    modules = {module["name"]: module for module in options["modules"]}
    assert modules["tiny_flux_controlnet"]["class"] == "FluxControlNetModel"
    assert modules["tiny_flux_controlnet"]["fields"] == ["controlnet"]
    conditions = [name for method in options["methods"] for name in method["conditions"]]
    assert "EntityRegions" in conditions
    assert set(conditions) <= set(client.get("/api/schema").json()["$defs"])
    assert options["limits"]["queue"] == 20


def test_openai_s_client_draws_and_edits(client, tmp_path, pipe):
    app, _ = make_server(Settings(make_served([("tiny", {"path": "tiny"})]), tmp_path, device="cpu"))
    with listening(app) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=120) as own:
        rest = {"call": {"seed": 6, "num_inference_steps": STEPS}}
        answer = own.images.generate(prompt="a white background", size="128x128", n=2, extra_body={"flux": rest})
        pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json)))) for image in answer.data]
        assert np.array_equal(pixels, direct(pipe, 6, num_images_per_prompt=2))
        source = Image.fromarray(pixels[0])
        mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
        mask.paste((0, 0, 0, 0), (32, 32, 96, 96))
        files = []
        for image in (source, mask):
            data = io.BytesIO()
            image.save(data, "PNG")
            files.append(data.getvalue())
        extra = {"flux": json.dumps(rest)}
        answer = own.images.edit(image=files[0], mask=files[1], prompt="a red circle", extra_body=extra)
        edited = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))
        changed = (edited != pixels[0]).any(-1)
        assert changed[40:88, 40:88].any()
        assert not changed[:32].any()
        answer = own.images.edit(image=files[0], prompt="a red circle", extra_body=extra)
        assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).size == (128, 128)
