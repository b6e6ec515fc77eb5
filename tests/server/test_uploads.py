"""Uploads, and images within jobs."""

import base64
import hashlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from starlette.testclient import TestClient

from diffusers_flux_ext.server.errors import RequestError
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.uploads import UploadStore

from .conftest import job, make_app


def image_bytes(kind="PNG", size=(20, 10), **options):
    """A file of an image."""
    data = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(data, kind, **options)
    return data.getvalue()


def numpy_bytes(array):
    """A file of an array."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


def bomb():
    """A PNG whose head names more pixels than its data have."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def animation():
    """A WebP image of two frames."""
    data = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:])
    return data.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_kept_by_its_digest(client, tmp_path, kind):
    data = image_bytes(kind)
    digest = hashlib.sha256(data).hexdigest()
    answer = client.post("/api/uploads", content=data, headers={"Content-Type": f"image/{kind.lower()}"})
    assert answer.status_code == 201
    assert answer.json() == {
        "id": f"upload:{digest}", "kind": "image", "width": 20, "height": 10, "bytes": len(data),
    }  # fmt: skip
    assert (tmp_path / "uploads" / digest).read_bytes() == data


@pytest.mark.parametrize("data", [save({"x": torch.zeros(2)}), numpy_bytes(np.zeros((2, 3), np.float32))])
def test_a_tensor_is_kept(client, data):
    answer = client.post("/api/uploads", content=data, headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 201
    assert answer.json()["kind"] == "tensor"


@pytest.mark.parametrize(
    "data, kind, status",
    [
        (b"", "image/png", 422),
        (b"not an image", "image/png", 422),
        (image_bytes()[:45], "image/png", 422),
        (image_bytes("JPEG", (200, 200))[:-200], "image/jpeg", 422),
        (image_bytes("GIF"), "image/png", 422),
        (image_bytes("TIFF"), "image/png", 422),
        (bomb(), "image/png", 422),
        (image_bytes(size=(5000, 4000)), "image/png", 422),
        (animation(), "image/webp", 422),
        (image_bytes(), "image/svg+xml", 415),
        (image_bytes(), "", 415),
        (save({"x": torch.zeros(2), "y": torch.zeros(2)}), "application/octet-stream", 422),
        (save({"x": torch.zeros(2)})[:-1], "application/octet-stream", 422),
        (numpy_bytes(np.array([{}], dtype=object)), "application/octet-stream", 422),
        (numpy_bytes(np.zeros(4))[:-1], "application/octet-stream", 422),
        (numpy_bytes(np.zeros(4)).replace(b"(4,)", b"(10000000000,)"), "application/octet-stream", 422),
        (b"\x93NUMPY\x01\x00\xff\xff{", "application/octet-stream", 422),
        (b"\x93NUMPY", "application/octet-stream", 422),
        (b"\xff" * 64, "application/octet-stream", 422),
    ],
)
def test_what_is_no_image_or_tensor_is_refused_and_not_kept(client, tmp_path, data, kind, status):
    answer = client.post("/api/uploads", content=data, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert list((tmp_path / "uploads").iterdir()) == []


def test_data_in_a_job_becomes_an_upload(client, tmp_path):
    data = image_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    name = client.post("/api/jobs", json=job(conditions=[{"type": "x", "images": [url, url]}])).json()["id"]
    stored = f"upload:{hashlib.sha256(data).hexdigest()}"
    assert client.get(f"/api/jobs/{name}").json()["job"]["conditions"] == [{"type": "x", "images": [stored, stored]}]
    assert len(list((tmp_path / "uploads").iterdir())) == 2


@pytest.mark.parametrize(
    "value, status",
    [
        ("data:image/png;base64,####", 422),
        ("data:image/png;base64,aaaa", 422),
        ("data:text/html;base64,aaaa", 415),
        (f"upload:{'0' * 64}", 422),
    ],
)
def test_data_that_cannot_be_read_is_named_by_its_field(client, value, status):
    answer = client.post("/api/jobs", json={"conditions": [{"image": value}]})
    assert answer.status_code == status
    assert answer.json()["error"]["field"] == "conditions.0.image"


def test_a_job_may_be_long_in_images_only(tmp_path, drawer):
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    data = io.BytesIO()
    noise.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    with TestClient(make_app(tmp_path, drawer, Limits(job_bytes=1000))) as client:
        assert client.post("/api/jobs", json=job(conditions=[{"image": url}])).status_code == 202
        assert client.post("/api/jobs", json={"call": {"prompt": "x" * 1000}}).status_code == 413


def test_uploads_that_no_job_names_make_room(tmp_path):
    data = [image_bytes(size=(side, 10)) for side in (11, 12, 13)]
    store = UploadStore(tmp_path, Limits(keep_uploads=2))
    kept = [store.add(each, "image/png")[0].removeprefix("upload:") for each in data[:2]]
    with pytest.raises(RequestError, match="keeps no more uploads"):
        store.add(data[2], "image/png")
    os.utime(tmp_path / "uploads" / kept[0], (0, 0))
    os.utime(tmp_path / "uploads" / kept[1], (0, 0))
    store.sweep({kept[1]}, 100)
    store.add(data[2], "image/png")
    with pytest.raises(KeyError):
        store.read(kept[0])
    assert UploadStore(tmp_path, Limits()).read(kept[1]) == data[1]


@pytest.mark.parametrize("name", ["../lock", "upload:../lock", "/etc/passwd", "upload:" + "0" * 63 + "/", ""])
def test_nothing_but_uploads_is_read(tmp_path, name):
    (tmp_path / "lock").write_text("secret")
    with pytest.raises(KeyError):
        UploadStore(tmp_path, Limits()).read(name)
