"""OpenAI's own client against the server."""

import base64
import io
import json
import threading
import time

import openai
import pytest
from PIL import Image

from diffusers_flux_ext.jobs.decoding import decode_image
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.openai_jobs import edit_job, generation_job
from diffusers_flux_ext.server.served import Served, ServedModel

from .conftest import color, listening, make_app, wait_for


TOKEN = "a token of this test"
PART = 'Content-Disposition: form-data; name="image"'


@pytest.fixture
def address(tmp_path, drawer):
    """The address of a server that needs a token."""
    with listening(make_app(tmp_path, drawer, Limits(queue=1), tokens=[TOKEN])) as address:
        yield address


@pytest.fixture
def client(address):
    """OpenAI's client."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0, timeout=30) as client:
        yield client


def pixel(data):
    """The color of an image."""
    return decode_image(base64.b64decode(data), 10**6).getpixel((0, 0))


def image_file(mode="RGB", value=(9, 9, 9), size=(32, 16)):
    """A file of an image."""
    data = io.BytesIO()
    Image.new(mode, size, value).save(data, "PNG")
    return data.getvalue()


def mask_file(size=(32, 16)):
    """A mask whose left half is transparent."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("dall-e-3")


def test_an_image_is_generated(client):
    answer = client.images.generate(
        model="tiny", prompt="a red circle", size="128x128", n=1, response_format="b64_json", quality="standard",
        user="someone", extra_body={"flux": {"call": {"seed": 77}}},
    )  # fmt: skip
    assert pixel(answer.data[0].b64_json) == color(77)
    assert answer.created <= time.time()
    assert answer.output_format == "png"


def test_an_image_may_be_fetched_by_its_address(client, address):
    answer = client.images.generate(model="tiny", prompt="x", response_format="url")
    assert answer.data[0].url.startswith(f"{address}/api/jobs/")
    assert (
        client._client.get(answer.data[0].url, headers={"Authorization": f"Bearer {TOKEN}"}).content[:4] == b"\x89PNG"
    )


def test_an_image_is_edited_with_a_mask(client, address):
    answer = client.images.edit(model="tiny", image=image_file(), mask=mask_file(), prompt="x", size="64x64")
    job = client._client.get(f"{address}/api/jobs/{answer.flux['job']}", headers=client.auth_headers).json()["job"]
    (condition,) = job["conditions"]
    assert condition["type"] == "InpaintRegion"
    assert job["call"] == {"width": 64, "height": 64, "prompt": "x"}
    assert len({condition["image"], condition["mask"]}) == 2


def test_images_become_references_without_a_mask(client, address):
    images = [("a.png", image_file(value=(index, 0, 0)), "image/png") for index in range(2)]
    answer = client.images.edit(
        model="tiny", image=images, prompt="x",
        extra_body={"flux": json.dumps({"call": {"seed": 5}, "conditions": [{"type": "Other"}]})},
    )  # fmt: skip
    assert pixel(answer.data[0].b64_json) == color(5)
    job = client._client.get(f"{address}/api/jobs/{answer.flux['job']}", headers=client.auth_headers).json()["job"]
    assert [condition["type"] for condition in job["conditions"]] == ["ReferenceImages", "Other"]
    assert len(job["conditions"][0]["images"]) == 2


@pytest.mark.parametrize(
    "change, status, field",
    [
        ({"model": "dall-e-3"}, 404, "model"),
        ({"size": "128"}, 422, "size"),
        ({"n": 11}, 422, "n"),
        ({"n": 9}, 422, "call.num_images_per_prompt"),
        ({"extra_body": {"steps": 3}}, 422, "steps"),
        ({"extra_body": {"flux": {"call": 3}}}, 422, "flux"),
        ({"extra_body": {"flux": {"call": {"seed": "x"}}}}, 422, "call.seed"),
        ({"stream": True}, 422, "stream"),
        ({"output_format": "gif"}, 422, "output_format"),
    ],
)
def test_a_wrong_value_is_named(client, change, status, field):
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.generate(**{"prompt": "x", **change})
    assert raised.value.status_code == status
    assert raised.value.body["field"] == field


@pytest.mark.parametrize(
    "change, status, field",
    [
        ({"image": b"not an image"}, 422, "image"),
        ({"mask": image_file("RGBA", (0, 0, 0, 255))}, 422, "mask"),
        ({"mask": mask_file((16, 16))}, 422, "mask"),
        ({"image": [image_file(), image_file()], "mask": mask_file()}, 422, "image"),
        ({"extra_body": {"flux": "{"}}, 400, None),
        ({"extra_body": {"nonsense": "1"}}, 422, "nonsense"),
    ],
)
def test_a_wrong_edit_is_named(client, change, status, field):
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.edit(**{"prompt": "x", "image": image_file(), **change})
    assert (raised.value.status_code, raised.value.body["field"]) == (status, field)


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"--x\r\nContent-Disposition: form-data; name=", "multipart/form-data; boundary=x", 422),
        (b"", "multipart/form-data; boundary=x", 422),
        (b"--x\r\n\r\n", "multipart/form-data", 400),
        (b"prompt=x&image=y", "application/x-www-form-urlencoded", 415),
        (f"--x\r\n{PART}\r\n\r\ntext\r\n--x--".encode(), "multipart/form-data; boundary=x", 422),
        (b"\xff\xfe" * 100, "multipart/form-data; boundary=x", 400),
    ],
)  # fmt: skip
def test_a_broken_form_is_refused(client, address, body, kind, status):
    headers = {"Content-Type": kind, "Authorization": f"Bearer {TOKEN}"}
    answer = client._client.post(f"{address}/v1/images/edits", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_a_wrong_key_a_full_queue_and_a_failed_job_are_errors_of_the_client(client, address, drawer):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").images.generate(prompt="x")
    drawer.fails = RuntimeError("secret")
    with pytest.raises(openai.InternalServerError) as raised:
        client.images.generate(prompt="x")
    assert "secret" not in str(raised.value)
    drawer.fails = None
    drawer.hold.clear()
    http = client._client
    for _ in range(2):
        answer = http.post(f"{address}/api/jobs", json={"call": {}}, headers=client.auth_headers)
        while http.get(f"{address}/api/health").json()["running"] == 0:
            time.sleep(0.005)
    assert answer.status_code == 202
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="x")
    drawer.hold.set()


def test_a_client_that_goes_away_cancels_its_job(client, address, drawer):
    drawer.hold.clear()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).images.generate(prompt="x")
    threading.Timer(2.5, drawer.hold.set).start()
    (record,) = client._client.get(f"{address}/api/jobs", headers=client.auth_headers).json()["jobs"]
    http = client._client
    http.headers.update(client.auth_headers)
    http.base_url = address
    assert wait_for(http, record["id"])["status"] == "cancelled"


def test_a_fill_model_takes_the_mask_itself_and_the_shape_is_kept():
    served = Served({"fill": ServedModel("fill", {"path": "x"}, {"width": 1024, "height": 1024}, fills=True)})
    job = edit_job({"prompt": "x"}, ["upload:a"], "upload:b", (1500, 750), served)
    assert job["conditions"] == [{"type": "FillMask", "image": "upload:a", "mask": "upload:b"}]
    assert job["call"] == {"width": 1456, "height": 720, "prompt": "x"}
    assert "max_area" not in edit_job({"prompt": "x"}, ["upload:a"], None, (10, 10), served)["conditions"][0]


def test_what_flux_says_wins():
    served = Served({"tiny": ServedModel("tiny", {"path": "tiny"})})
    rest = {"call": {"width": 64, "seed": 1}, "output": {"format": "webp"}}
    job = generation_job(
        {"prompt": "x", "n": 2, "size": "32x32", "output_format": "jpeg", "output_compression": 50, "flux": rest},
        served,
    )
    assert job == {
        "model": {"path": "tiny"}, "output": {"format": "webp"},
        "call": {"prompt": "x", "num_images_per_prompt": 2, "width": 64, "height": 32, "seed": 1},
    }  # fmt: skip
