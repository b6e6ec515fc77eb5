"""Each job is handed out once, whatever happens, and what became of it is on the disk."""

import json
import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from diffusers_flux_ext.checkpoints.writing import numbered
from diffusers_flux_ext.jobs import JobFiles, read_job
from diffusers_flux_ext.jobs.batch.engine import LocalEngine, Work, draw
from diffusers_flux_ext.jobs.batch.ledger import Ledger
from diffusers_flux_ext.jobs.batch.results import ERROR, RECORD, ResultFolder
from diffusers_flux_ext.jobs.errors import JobError, Problem


def job(prompt, model="m"):
    return read_job({"model": model, "call": {"prompt": prompt}})


def works(*prompts, model="m"):
    return [Work(f"name-{prompt}", f"digest-{prompt}", prompt, job(prompt, model), JobFiles()) for prompt in prompts]


class Runner:
    """Draws a pixel, or two, or fails, as the prompt says."""

    def __init__(self):
        self.drawn = []

    def run(self, job, files, on_step=None):
        prompt = job.call.prompt
        self.drawn.append(prompt)
        if prompt == "bad":
            raise RuntimeError("out of luck")
        if prompt == "wrong":
            raise JobError([Problem("call.image", "got nothing")])
        images = [Image.new("RGB", (8, 4))] * (2 if prompt == "two" else 1)
        return SimpleNamespace(images=images, seeds=list(range(len(images))), seconds=0.5)


def ledger(folder, listed, **options):
    return Ledger(listed, ResultFolder(folder), **options)


def run(folder, listed, runner=None, **options):
    runner, book = runner or Runner(), ledger(folder, listed, **options)
    LocalEngine(runner).run(book.hand_out(), book.report)
    return runner.drawn


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_images_and_records_are_written_and_nothing_is_drawn_again(tmp_path):
    assert run(tmp_path, works("a", "two")) == ["a", "two"]
    assert files(tmp_path) == ["name-a.json", "name-a.png", "name-two.json", "name-two_0.png", "name-two_1.png"]
    record = json.loads((tmp_path / "name-two.json").read_text())
    assert (record["seeds"], record["images"][1]["file"]) == ([0, 1], "name-two_1.png")
    assert run(tmp_path, works("a", "two", "b")) == ["b"]
    assert not any((tmp_path / ".claims").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / f"name-a{RECORD}").unlink(),
        lambda folder: (folder / f"name-a{RECORD}").write_text('{"digest":'),
        lambda folder: (folder / f"name-a{RECORD}").write_text("[]"),
        lambda folder: (folder / f"name-a{RECORD}").write_text('{"digest": "digest-a", "images": [{}]}'),
        lambda folder: (folder / f"name-a{RECORD}").write_text('{"digest": "another", "images": []}'),
        lambda folder: (folder / "name-a.png").unlink(),
        lambda folder: (folder / "name-a.png").write_bytes((folder / "name-a.png").read_bytes()[:-1]),
    ],
)
def test_what_is_damaged_is_drawn_again(tmp_path, damage):
    run(tmp_path, works("a", "b"))
    damage(tmp_path)
    assert run(tmp_path, works("a", "b")) == ["a"]
    assert run(tmp_path, works("a", "b")) == []


def test_a_record_names_files_of_its_folder_only(tmp_path):
    run(tmp_path / "out", works("a"))
    image = tmp_path / "out" / "name-a.png"
    image.rename(tmp_path / "name-a.png")
    path = tmp_path / "out" / f"name-a{RECORD}"
    path.write_text(path.read_text().replace("name-a.png", "../name-a.png"))
    assert run(tmp_path / "out", works("a")) == ["a"]


def test_a_failure_is_written_down_and_the_others_are_drawn(tmp_path):
    assert run(tmp_path, works("bad", "a", "wrong")) == ["bad", "a", "wrong"]
    error = json.loads((tmp_path / f"name-bad{ERROR}").read_text())
    assert (error["error"], error["message"]) == ("RuntimeError", "out of luck")
    assert "in run" in error["traceback"]
    wrong = json.loads((tmp_path / f"name-wrong{ERROR}").read_text())
    assert wrong["problems"] == [{"field": "call.image", "message": "got nothing"}]
    assert wrong["traceback"] == ""
    assert wrong["job"]["call"]["prompt"] == "wrong"


def test_failures_are_retried_once_per_run_and_only_on_demand(tmp_path):
    run(tmp_path, works("bad"))
    assert run(tmp_path, works("bad")) == []
    assert run(tmp_path, works("bad"), retry_failed=True) == ["bad"]
    mended = Runner()
    mended.run = lambda job, files, on_step=None: Runner().run(
        read_job({"model": "m", "call": {"prompt": "fine"}}), files
    )
    run(tmp_path, works("bad"), mended, retry_failed=True)
    assert files(tmp_path) == ["name-bad.json", "name-bad.png"]


def test_a_full_disk_ends_the_run_and_gives_up_the_claim_of_nothing_that_was_written(tmp_path):
    book = ledger(tmp_path, works("a"))
    book.folder.store.write = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        LocalEngine(Runner()).run(book.hand_out(), book.report)
    book.give_up()
    assert run(tmp_path, works("a")) == ["a"]


def test_two_processes_share_the_work(tmp_path):
    listed = works(*map(str, range(30)))
    runners, books = [Runner(), Runner()], [ledger(tmp_path, listed, pause=0.01) for _ in range(2)]
    threads = [
        threading.Thread(target=LocalEngine(runner).run, args=(book.hand_out(), book.report))
        for runner, book in zip(runners, books)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runners[0].drawn + runners[1].drawn, key=int) == [str(number) for number in range(30)]
    assert len(files(tmp_path)) == 60


def test_a_second_process_begins_with_a_model_that_nobody_uses(tmp_path):
    listed = [*works("a", "b", model="m"), *works("c", "d", model="n")]
    one, other = ledger(tmp_path, listed), ledger(tmp_path, listed, pause=0.01)
    first = one.hand_out()
    assert next(first).name == "name-a"
    second = other.hand_out()
    assert [next(second).name for _ in range(3)] == ["name-c", "name-d", "name-b"]
    one.claims.release_all()
    # The first process gave its job up, so the second one draws it.
    assert next(second).name == "name-a"


def test_an_engine_may_take_several_jobs_before_it_reports(tmp_path):
    book = ledger(tmp_path, works("a", "b", "c"))
    taken = list(book.hand_out())
    for work in reversed(taken):
        book.report(draw(Runner(), work))
    assert run(tmp_path, works("a", "b", "c")) == []


def test_images_are_numbered_unless_there_is_one():
    assert [numbered("out/a.b.png", index, 2) for index in range(2)] == ["out/a.b_0.png", "out/a.b_1.png"]
    assert numbered("out/a.png", 0, 1) == "out/a.png"
