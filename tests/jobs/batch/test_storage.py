"""Lists and results on stores that fsspec knows by a URL, and what one process sees of another there."""

import io
import json
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from diffusers_flux_ext.jobs import read_job
from diffusers_flux_ext.jobs.batch import JobListError, LocalEngine, Run, read_entries, read_listed
from diffusers_flux_ext.jobs.batch.needs import needs
from diffusers_flux_ext.jobs.batch.storage import LocalStore, RemoteStore, open_store
from diffusers_flux_ext.jobs.batch.storage.lease import LEASE, FolderLease


class Runner:
    """Draws the first reference of a job, or a red image."""

    def __init__(self):
        self.drawn = []

    def run(self, job, files, on_step=None):
        self.drawn.append(job.call.prompt)
        image = files.image(job.conditions[0].images, "image") if job.conditions else Image.new("RGB", (8, 8), "red")
        return SimpleNamespace(images=[image], seeds=[0], seconds=0.1)


def job(prompt, **entries):
    return {"model": "tiny", "call": {"prompt": prompt}, **entries}


def png(color):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def memory():
    """A folder in memory, and its URL."""
    filesystem = fsspec.filesystem("memory")
    filesystem.makedirs("/bucket/lists", exist_ok=True)
    lines = [job("a"), job("b", conditions=[{"type": "ReferenceImages", "images": "inputs/blue.png"}])]
    filesystem.pipe_file("/bucket/lists/jobs.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    filesystem.pipe_file("/bucket/lists/inputs/blue.png", png("blue"))
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("diffusers_flux_ext.jobs.batch.storage.lease.FolderLease.__init__.__defaults__", (0.02,))


def run(source="memory://bucket/lists/jobs.jsonl", out="memory://bucket/out", **options):
    runner = Runner()
    lines = Run(read_listed(read_entries(source)), out, pause=0.02, **options)(LocalEngine(runner))
    return runner.drawn, lines


def test_list_inputs_and_results_may_lie_on_a_store(memory, tmp_path):
    drawn, lines = run()
    assert drawn == ["a", "b"]
    assert [line["status"] for line in lines] == ["done", "done"]
    names = {path.rpartition("/")[2] for path in memory.ls("/bucket/out", detail=False)}
    assert names == {each for line in lines for each in (f"{line['name']}.png", f"{line['name']}.json")} | {
        "results.jsonl", "contact_sheet.png",
    }  # fmt: skip
    data = memory.cat_file(f"/bucket/out/{lines[1]['name']}.png")
    with Image.open(io.BytesIO(data)) as image:
        assert image.getpixel((0, 0)) == (0, 0, 255)
    (tmp_path / "image.png").write_bytes(data)
    assert read_job(tmp_path / "image.png").call.prompt == "b"
    assert run()[0] == []


def test_a_store_and_a_folder_get_the_same_bytes(memory, tmp_path):
    _, lines = run()
    run(out=tmp_path / "out")
    for line in lines:
        name = f"{line['name']}.png"
        assert memory.cat_file(f"/bucket/out/{name}") == (tmp_path / "out" / name).read_bytes()


def test_what_has_another_size_is_drawn_again(memory):
    _, lines = run()
    path = f"/bucket/out/{lines[0]['name']}.png"
    memory.pipe_file(path, memory.cat_file(path)[:-1])
    assert run()[0] == ["a"]


def test_a_folder_of_jobs_and_single_documents_are_read_by_url(memory):
    memory.pipe_file("/bucket/many/1.json", json.dumps(job("x")).encode())
    memory.pipe_file("/bucket/many/2.yaml", b"{model: tiny, call: {prompt: y}}")
    memory.pipe_file("/bucket/many/notes.txt", b"nothing")
    assert [entry.content["call"]["prompt"] for entry in read_entries("memory://bucket/many")] == ["x", "y"]
    assert [entry.place for entry in read_entries("memory://bucket/many/2.yaml")] == ["2.yaml"]


@pytest.mark.parametrize(
    "url, message",
    [
        ("memory://bucket/nothing", "no folder of jobs"),
        ("memory://bucket/lists/inputs/blue.png", "'.png'; expected"),
        ("nowhere://bucket/jobs.jsonl", "Protocol not known: nowhere"),
    ],
)
def test_what_is_no_list_is_said(memory, url, message):
    with pytest.raises(JobListError, match=message):
        read_entries(url)


def test_missing_and_large_inputs_are_named(memory):
    wrong = [job("a", conditions=[{"type": "ReferenceImages", "images": name}]) for name in ("none.png", "large.png")]
    memory.pipe_file("/bucket/lists/large.png", bytes(65 * 2**20))
    memory.pipe_file("/bucket/lists/wrong.jsonl", "".join(f"{json.dumps(line)}\n" for line in wrong).encode())
    found = read_listed(read_entries("memory://bucket/lists/wrong.jsonl"))
    assert "does not exist" in str(found[0].error)
    assert "more than 67108864 bytes" in str(found[1].error)


def test_needs_are_told_without_writing_to_the_store(memory):
    listed = read_listed(read_entries("memory://bucket/lists/jobs.jsonl"))
    assert [found["status"] for found in needs(listed, "memory://bucket/out")] == ["open", "open"]
    assert not memory.exists("/bucket/out")


def test_a_url_of_the_local_disk_is_a_path(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job("a")))
    drawn, _ = run(f"file://{tmp_path}/jobs.jsonl", f"file://{tmp_path}/out")
    assert drawn == ["a"]
    assert isinstance(open_store(f"file://{tmp_path}/out"), LocalStore)
    assert (tmp_path / "out" / "results.jsonl").is_file()


def test_unknown_kinds_of_urls_are_refused():
    with pytest.raises(ValueError, match="`nowhere://a` cannot be opened: Protocol not known"):
        open_store("nowhere://a")


def store():
    return open_store("memory://bucket/out")


def lease(seconds=60.0):
    return FolderLease(store(), seconds, 0.02)


def taking(other):
    """Start a thread that takes a lease; return it, and what it will have got."""
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(other.take("a")))
    waiting.start()
    return waiting, taken


def test_one_process_at_a_time_writes_a_store(memory):
    one, other = lease(), lease()
    assert one.take("a")
    assert not one.take("a")
    waiting, taken = taking(other)
    waiting.join(0.3)
    assert not taken
    one.release_all()
    waiting.join(10)
    assert taken == [True]
    other.release_all()
    assert not memory.exists(f"/bucket/out/{LEASE}")


def left_behind(memory, **changes):
    """Write the lease of a process that is gone."""
    owner = {"token": "x", "beat": 3, "host": "elsewhere", "process": 1} | changes
    memory.pipe_file(f"/bucket/out/{LEASE}", json.dumps(owner).encode())


def test_a_store_is_taken_over_from_a_machine_that_is_gone_and_no_earlier(memory):
    left_behind(memory)
    start = time.monotonic()
    late = lease(0.6)
    assert late.take("a")
    assert time.monotonic() > start + 0.6
    late.release_all()


def test_a_store_is_taken_over_at_once_from_a_process_of_this_machine_that_has_ended(memory):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left_behind(memory, host=socket.gethostname(), process=ended.pid)
    held = lease(600.0)
    assert held.take("a")
    held.release_all()


def test_a_heartbeat_keeps_the_lease(memory):
    one, other = lease(0.6), lease(0.6)
    assert one.take("a")
    waiting, taken = taking(other)
    waiting.join(1.5)
    assert not taken
    one.release_all()
    waiting.join(10)
    other.release_all()


def test_a_process_that_was_taken_for_gone_is_told(memory):
    held = lease(0.3)
    assert held.take("a")
    left_behind(memory)
    end = time.monotonic() + 10
    while not held._lost:
        assert time.monotonic() < end
        time.sleep(0.02)
    with pytest.raises(OSError, match="names another process"):
        held.take("b")
    held.release_all()
    assert memory.exists(f"/bucket/out/{LEASE}")


class Careless(MemoryFileSystem):
    """Lets two processes create the same file at once, as stores without exclusive creation do."""

    together = threading.Barrier(2)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if mode == "create":
            self.together.wait(10)
        super().pipe_file(path, value)


def test_without_exclusive_creation_one_of_two_that_begin_together_waits(memory, monkeypatch):
    leases = [FolderLease(RemoteStore(Careless(), "/bucket/out", "careless://out"), 60.0, 0.02, 0.3) for _ in range(2)]
    taken = []
    threads = [threading.Thread(target=lambda each=each: taken.append((each.take("a"), each))) for each in leases]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    assert len(taken) == 1
    monkeypatch.setattr(Careless, "together", threading.Barrier(1))
    taken[0][1].release_all()
    for thread in threads:
        thread.join(10)
    assert {each for _, each in taken} == set(leases)
    taken[1][1].release_all()


class Older(MemoryFileSystem):
    """Does not know how to create exclusively."""

    def pipe_file(self, path, value):
        super().pipe_file(path, value)


def test_packages_that_cannot_create_exclusively_are_written_to(memory):
    found = RemoteStore(Older(), "/bucket/out", "older://out")
    assert [found.create("a", b"1"), found.create("a", b"2")] == [True, False]
    assert found.read_now("a") == b"1"


def test_two_runs_into_one_store_draw_each_job_once(memory):
    many = [job(str(number)) for number in range(12)]
    memory.pipe_file("/bucket/lists/many.jsonl", "".join(f"{json.dumps(line)}\n" for line in many).encode())
    drawn = []
    threads = [
        threading.Thread(target=lambda: drawn.extend(run("memory://bucket/lists/many.jsonl")[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(drawn, key=int) == [str(number) for number in range(12)]
    assert len(memory.ls("/bucket/out")) == 26


def test_errors_of_a_store_name_the_file(memory, monkeypatch):
    def fail(*_, **__):
        raise KeyError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(OSError, match=r"`memory://bucket/out/a` cannot be read or written: KeyError"):
        store().write("a", b"")
