"""Runs of lists: names, repetitions, wrong entries, the manifest, the sheet."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusers_flux_ext.jobs import read_job
from diffusers_flux_ext.jobs.batch import LocalEngine, Run, read_entries, read_listed
from diffusers_flux_ext.jobs.batch.sheet import contact_sheets


class Runner:
    """Draws an image of one colour, or fails for the prompt `bad`."""

    def __init__(self):
        self.drawn = []

    def run(self, job, files, on_step=None):
        self.drawn.append(job.call.prompt)
        if job.call.prompt == "bad":
            raise RuntimeError("out of luck")
        count = job.to_dict()["call"].get("num_images_per_prompt", 1)
        return SimpleNamespace(images=[Image.new("RGB", (32, 16), "red")] * count, seeds=[0] * count, seconds=0.1)


def job(prompt, **changes):
    return {"model": "tiny", "call": {"prompt": prompt, **changes}}


def write(folder, *jobs):
    path = folder / "jobs.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in jobs))
    return path


def run(folder, path, **options):
    runner = Runner()
    lines = Run(read_listed(read_entries(path)), folder / "out", **options)(LocalEngine(runner))
    return runner.drawn, lines


def test_results_are_named_by_digests_and_hold_their_jobs(tmp_path):
    drawn, lines = run(tmp_path, write(tmp_path, job("a"), job("b", num_images_per_prompt=2)))
    assert drawn == ["a", "b"]
    assert [line["status"] for line in lines] == ["done", "done"]
    name = read_job(job("a")).digest()[:20]
    assert lines[0]["name"] == name
    assert read_job(tmp_path / "out" / f"{name}.png").call.prompt == "a"
    assert [image["file"] for image in lines[1]["images"]] == [f"{lines[1]['name']}_{index}.png" for index in range(2)]
    manifest = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in manifest] == lines


def test_results_stand_in_the_order_of_the_list_whatever_the_groups(tmp_path):
    jobs = [job("a"), {**job("b"), "loras": ["x.safetensors"]}, job("c"), {**job("d"), "loras": ["x.safetensors"]}]
    drawn, lines = run(tmp_path, write(tmp_path, *jobs))
    assert drawn == ["a", "c", "b", "d"]
    assert [line["place"] for line in lines] == [f"jobs.jsonl, line {number}" for number in range(1, 5)]


def test_a_repeated_job_is_drawn_once_and_said(tmp_path):
    same = {"call": {"seed": 0, "prompt": "a"}, "model": {"path": "tiny"}, "version": 1}
    drawn, lines = run(tmp_path, write(tmp_path, job("a"), job("b"), same))
    assert drawn == ["a", "b"]
    assert lines[2]["same_as"] == "jobs.jsonl, line 1"
    assert lines[2]["images"] == lines[0]["images"]
    assert "same_as" not in lines[1]


def test_jobs_with_other_inputs_are_other_jobs(tmp_path):
    source = {**job("a"), "conditions": [{"type": "ReferenceImages", "images": "a.png"}]}
    path = write(tmp_path, source)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    first = run(tmp_path, path)[1]
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    drawn, second = run(tmp_path, path)
    assert drawn == ["a"]
    assert first[0]["name"] != second[0]["name"]


def test_what_is_wrong_is_written_down_and_the_rest_is_drawn(tmp_path):
    missing = {**job("later"), "conditions": [{"type": "ReferenceImages", "images": "a.png"}]}
    path = write(tmp_path, {"model": "tiny", "cal": {}}, job("bad"), missing, job("a"))
    drawn, lines = run(tmp_path, path)
    assert drawn == ["bad", "a"]
    assert [line["status"] for line in lines] == ["failed", "failed", "failed", "done"]
    errors = {found.name: json.loads(found.read_text()) for found in (tmp_path / "out").glob("*.error.json")}
    assert len(errors) == 3
    wrong = errors[f"{lines[0]['name']}.error.json"]
    assert wrong["place"] == "jobs.jsonl, line 1"
    assert [problem["field"] for problem in wrong["problems"]] == ["cal"]
    # Once the file is there, it is a job like any other.
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    drawn, lines = run(tmp_path, path)
    assert drawn == ["later"]
    assert [line["status"] for line in lines] == ["failed", "failed", "done", "done"]
    assert len(list((tmp_path / "out").glob("*.error.json"))) == 2
    assert run(tmp_path, path, retry_failed=True)[0] == ["bad"]


def test_an_interrupted_run_gives_its_claims_up(tmp_path):
    path = write(tmp_path, job("a"), job("b"))
    stopped = Run(read_listed(read_entries(path)), tmp_path / "out")

    def stop(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(LocalEngine(Runner()), stop)
    assert not any((tmp_path / "out" / ".claims").iterdir())
    assert run(tmp_path, path)[0] == ["b"]


def test_a_sheet_shows_results_and_what_failed(tmp_path):
    run(tmp_path, write(tmp_path, job("a"), job("bad"), job("a")))
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        colors = {color: count for count, color in sheet.convert("RGB").getcolors(100_000)}
    assert colors[(255, 0, 0)] == 192 * 96
    assert colors[(238, 222, 222)] > 192 * 192 * 0.9


def test_many_results_have_several_sheets(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    pages = list(contact_sheets([((tmp_path / "a.png").read_bytes, "a text that is long " * 20)] * 100))
    assert [page.height for page in pages] == [12 + 12 * 248, 12 + 248]
