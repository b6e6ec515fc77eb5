"""Jobs travel with the content of their inputs, and what is drawn from a parcel is what is drawn from the job."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.support.job_runners import ColorRunner
from diffusers_flux_ext.jobs import JobError, JobFiles, read_job
from diffusers_flux_ext.jobs.batch.distributed.parcel import RemoteError, draw_parcel, drawn_of, pack, unpack
from diffusers_flux_ext.jobs.batch.engine import Work, draw


@pytest.fixture
def work(tmp_path):
    """A job with inputs of several kinds, in a folder."""
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "a.png")
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    np.save(tmp_path / "b.npy", np.zeros((3, 16, 16), np.float32))
    inline = "data:image/png;base64," + base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    job = read_job(
        {
            "model": str(tmp_path / "model"),
            "loras": ["style.safetensors"],
            "conditions": [
                {"type": "ReferenceImages", "images": ["a.png", inline]},
                {"type": "InpaintRegion", "image": "a.png", "mask": "mask.png"},
                {"type": "ControlNetImage", "controlnet": "net", "image": "b.npy"},
            ],
            "call": {"prompt": "a", "width": 16, "height": 16},
        }
    )
    files = JobFiles(tmp_path)
    return Work("name", job.digest(files), "line 1", job, files)


def test_a_parcel_holds_each_input_once_and_gives_the_same_job_elsewhere(work, tmp_path):
    parcel = pack(work)
    assert len(parcel.inputs) == 3
    for name in ("a.png", "mask.png", "b.npy"):
        (tmp_path / name).unlink()
    job, files = unpack(parcel)
    assert job.digest(files) == work.digest
    assert files.image(job.conditions[0].images[1], "x").getpixel((0, 0)) == (0, 0, 255)
    assert job.model.path == work.job.model.path
    assert parcel.base == str(tmp_path.resolve())


def test_drawing_from_a_parcel_gives_the_same_files(work):
    answer = draw_parcel(ColorRunner(), pack(work))
    outcome = draw(ColorRunner(), work)
    assert [image.data for image in drawn_of(answer).images] == [image.data for image in outcome.result.images]


def test_a_parcel_of_a_parcel_is_the_same(work):
    parcel = pack(work)
    job, files = unpack(parcel)
    again = pack(Work("name", work.digest, "line 1", job, files))
    assert json.loads(again.text) == json.loads(parcel.text)
    assert again.inputs == parcel.inputs


def test_an_input_that_is_gone_is_named(work, tmp_path):
    (tmp_path / "a.png").unlink()
    with pytest.raises(JobError, match="does not exist"):
        pack(work)


class Broken:
    def __init__(self, error):
        self.error = error

    def run(self, job, files, on_step=None):
        raise self.error


def test_problems_of_a_job_come_back_as_such(work):
    with pytest.raises(JobError) as caught:
        drawn_of(draw_parcel(Broken(JobError.of("call.prompt", "is too long")), pack(work)))
    assert [problem.field for problem in caught.value.problems] == ["call.prompt"]


def test_other_errors_come_back_with_the_place_where_they_were_raised(work):
    answer = draw_parcel(Broken(KeyError("x")), pack(work))
    with pytest.raises(RemoteError, match="KeyError") as caught:
        drawn_of(answer)
    assert "in run" in caught.value.record["traceback"]
    assert not answer["broken"]


def test_errors_of_an_accelerator_end_its_process(work):
    assert draw_parcel(Broken(RuntimeError("CUDA error: an illegal memory access")), pack(work))["broken"]
    assert not draw_parcel(Broken(RuntimeError("CUDA out of memory")), pack(work))["broken"]
