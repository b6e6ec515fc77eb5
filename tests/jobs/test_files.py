"""Files of jobs: found in every form, limited, and decoded with care."""

import base64
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from diffusers_flux_ext.jobs import JobError, JobFiles
from diffusers_flux_ext.jobs.values import ImageValue, RegionValue, StoredFile, TensorValue


def png(size=(8, 4), mode="RGB", **options):
    stream = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 0).save(stream, "PNG", **options)
    return stream.getvalue()


def inline(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def message(call, *arguments):
    with pytest.raises(JobError) as caught:
        call(*arguments)
    (problem,) = caught.value.problems
    assert problem.field == "call.image"
    return problem.message


def image(files, value):
    return files.image(ImageValue.model_validate(value), "call.image")


def tensor(files, value):
    return files.tensor(TensorValue.model_validate(value), "call.image")


def test_an_image_is_found_in_every_form(tmp_path):
    data = png()
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "a.png").write_bytes(data)
    files = JobFiles(tmp_path, {digest: data})
    for value in (
        "a.png",
        str(tmp_path / "a.png"),
        inline(data),
        f"upload:{digest}",
        {"file": "a.png", "sha256": digest},
    ):
        assert image(files, value).size == (8, 4)
    # An upload is found by its content, whatever its name was.
    assert image(files, {"file": "gone.png", "sha256": digest}).size == (8, 4)
    assert image(JobFiles(uploads=lambda asked: {digest: data}[asked]), f"upload:{digest}").size == (8, 4)


def test_a_missing_or_changed_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    files = JobFiles(tmp_path)
    assert message(image, files, "b.png") == "is 'b.png', which does not exist"
    assert "has not been uploaded" in message(image, files, "upload:00")
    assert "has changed" in message(image, files, {"file": "a.png", "sha256": "0" * 64})
    assert "which does not exist" in message(image, files, {"file": "b.png", "sha256": "0" * 64})
    assert "is '.', which is a folder" in message(image, files, ".")


def test_paths_are_refused_where_they_are_not_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    files = JobFiles(tmp_path, allow_paths=False)
    for value in ("a.png", str(tmp_path / "a.png"), {"file": "a.png", "sha256": "0" * 64}):
        assert (
            message(image, files, value) == "names a file, which is not possible here; give an upload or a `data:` URL"
        )


def test_bytes_and_pixels_are_limited(tmp_path):
    (tmp_path / "a.png").write_bytes(png((64, 64)))
    data = png((64, 64))
    few = JobFiles(tmp_path, {"0" * 64: data}, max_bytes=20)
    for value in ("a.png", inline(data), f"upload:{'0' * 64}"):
        assert "20" in message(image, few, value)
    assert "64 x 64 pixels, more than 4000" in message(image, JobFiles(tmp_path, max_pixels=4000), "a.png")
    assert "is not a tensor" in message(tensor, JobFiles(), inline(struct.pack("<Q", 2**40) + b"{"))


def test_a_bomb_is_refused_before_it_is_decoded():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    assert "60000 x 60000 pixels" in message(image, JobFiles(), inline(bomb)) or "bomb" in message(
        image, JobFiles(), inline(bomb)
    )


def test_what_is_no_still_image_is_refused():
    frames = io.BytesIO()
    Image.new("L", (4, 4)).save(frames, "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 255)])
    cases = {
        inline(b"not an image"): "is not an image",
        inline(png((64, 64))[:-30]): "is a broken or incomplete image",
        inline(frames.getvalue()): "has 2 frames",
        "data:image/png,abc": "without `;base64,`",
        "data:image/png;base64,???": "is not base64",
    }
    for value, expected in cases.items():
        assert expected in message(image, JobFiles(), value)


def test_a_photo_is_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image(JobFiles(), inline(png((8, 4), exif=exif))).size == (4, 8)


def test_tensors_are_read_without_pickles():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    stream, pickled = io.BytesIO(), io.BytesIO()
    np.save(stream, values)
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    files, kind = JobFiles(), "application/octet-stream"
    assert torch.equal(tensor(files, inline(stream.getvalue(), kind)), torch.from_numpy(values))
    assert torch.equal(tensor(files, inline(save({"x": torch.from_numpy(values)}), kind)), torch.from_numpy(values))
    # Beside images, an array stays an array, whose axes mean something else.
    assert isinstance(image(files, inline(stream.getvalue(), kind)), np.ndarray)
    wrong = {
        save({"x": torch.ones(1), "y": torch.ones(1)}): "it holds 2 tensors",
        pickled.getvalue(): "it holds Python objects",
        stream.getvalue()[:-4]: "it is incomplete",
        png(): "is not a tensor",
    }
    for data, expected in wrong.items():
        assert expected in message(tensor, files, inline(data, kind))


def test_a_region_is_a_box_or_an_image():
    files = JobFiles()

    def region(value):
        return files.region(RegionValue.model_validate(value), "call.image", (20, 10))

    assert region([0, 0, 10, 5]) == (0, 0, 10, 5)
    assert region(inline(png(mode="L"))).mode == "L"
    drawn = np.asarray(region({"polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}))
    assert drawn.shape == (10, 20)
    assert (drawn[:, :9] == 255).all()
    assert (drawn[:, 11:] == 0).all()
    assert StoredFile(file="a", sha256="0" * 64).file == "a"


def test_strokes_have_hard_edges_and_erase_what_was_before_them():
    files = JobFiles()
    stroke = {"points": [[0.5, 0.1], [0.5, 0.9]], "width": 0.4}
    erased = {"points": [[0.5, 0.5]], "width": 0.2, "erase": True}

    def drawn(*strokes):
        value = RegionValue.model_validate({"strokes": list(strokes)})
        return np.asarray(files.region(value, "", (50, 50)))

    whole, cut = drawn(stroke), drawn(stroke, erased)
    assert set(np.unique(whole)) == {0, 255}
    assert abs((whole[25] == 255).sum() - 20) <= 1
    assert whole[25, 25] == 255
    assert cut[25, 25] == 0
    assert ((whole == 255) >= (cut == 255)).all()
    # The width follows the shorter side, so that it is the same in both directions.
    assert np.array_equal(drawn({**stroke, "points": [[0.1, 0.5], [0.9, 0.5]]}), whole.T)
