"""Result images: the job in them draws the same pixels again, and gives nothing away."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_flux_ext.jobs import JobError, JobFiles, read_job, save_result_image
from tests.fixtures.jobs import BOX, STROKES, write_inputs


def job_of(folder, **output):
    return read_job(
        {
            "model": {"path": str(folder / "models" / "flux")},
            "loras": [{"path": str(folder / "secret" / "style.safetensors"), "weight": 0.5}, "owner/name"],
            "conditions": [
                {"type": "EntityRegions", "prompts": ["a", "b"], "masks": [BOX, STROKES]},
                {"type": "ControlNetImage", "controlnet": str(folder / "net"), "image": str(folder / "photo.png")},
            ],
            "call": {"prompt": "süß", "image": "photo.png", "num_images_per_prompt": 2},
            "output": output,
        }
    )


@pytest.fixture
def folder(tmp_path):
    return write_inputs(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_job_comes_back_from_the_image_without_paths_of_the_machine(folder, kind):
    path, job = folder / f"result.{kind}", job_of(folder, format=kind)
    save_result_image(Image.new("RGB", (32, 16), "navy"), path, job, 1, JobFiles(folder))
    with Image.open(path) as image:
        assert image.size == (32, 16)
    again = read_job(path)
    assert str(folder) not in json.dumps(again.to_dict())
    assert again.model.path == "flux"
    assert [lora.path for lora in again.loras] == ["style.safetensors", "owner/name"]
    entities, control = again.to_dict()["conditions"]
    assert entities["masks"] == [BOX, STROKES]
    assert control["image"]["file"] == "photo.png"
    assert again.call.prompt == "süß"
    # Its files are found beside the image, and are those that were used.
    image = JobFiles(folder).image(again.call.image, "call.image")
    assert np.array_equal(image, Image.open(folder / "photo.png"))
    (folder / "photo.png").write_bytes((folder / "mask.png").read_bytes())
    with pytest.raises(JobError, match="`call.image` is `photo.png`, whose content has changed"):
        JobFiles(folder).image(again.call.image, "call.image")


def test_an_image_is_written_whole_or_not_at_all(folder):
    (folder / "photo.png").unlink()
    with pytest.raises(JobError, match="does not exist"):
        save_result_image(Image.new("RGB", (8, 8)), folder / "result.png", job_of(folder), 0, JobFiles(folder))
    assert not (folder / "result.png").exists()


def test_a_job_too_long_for_a_format_is_refused_with_what_to_do(folder):
    points = [[index % 97 / 97, index % 89 / 89] for index in range(6000)]
    content = {"model": "tiny", "output": {"format": "jpeg"}, "conditions": [
        {"type": "EntityRegions", "prompts": ["a"], "masks": [{"strokes": [{"points": points}]}]}]}  # fmt: skip
    with pytest.raises(JobError, match="take `png` or `webp`"):
        save_result_image(Image.new("RGB", (8, 8)), folder / "result.jpg", read_job(content))
    assert not (folder / "result.jpg").exists()


def test_the_digest_follows_the_content_and_not_the_names(folder):
    files, first = JobFiles(folder), job_of(folder)
    before = first.digest(files)
    (folder / "renamed.png").write_bytes((folder / "photo.png").read_bytes())
    content = first.to_dict()
    assert read_job({**content, "call": {**content["call"], "image": "renamed.png"}}).digest(files) == before
    assert read_job({**content, "call": {**content["call"], "image": "mask.png"}}).digest(files) != before
    assert read_job({**content, "call": {**content["call"], "seed": 1}}).digest(files) != before
    assert read_job({**content, "call": {**content["call"], "seed": 0}}).digest(files) == before
