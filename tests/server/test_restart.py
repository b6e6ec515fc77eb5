"""What a server keeps when its process ends at any moment."""

import json
import os
import signal
import time

import pytest
from starlette.testclient import TestClient

from benchmarks.support.processes import end_of, start_process
from diffusers_flux_ext.server.launch import JobServer, address_of, open_socket
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.records import Record
from diffusers_flux_ext.server.store import JobStore

from .conftest import FakeDrawer, job, make_app, submit, wait_for


class Slow(FakeDrawer):
    """The stand-in, whose steps take 20 ms."""

    def draw(self, model, jobs, folders, on_step):
        return super().draw(model, jobs, folders, lambda info: (time.sleep(0.02), on_step(info)))


def serve(folder, address):
    """Serves in another process, and writes where."""
    app, listening = make_app(folder, Slow()), open_socket("127.0.0.1", 0)
    whole = address.with_suffix(".part")
    whole.write_text(address_of(listening))
    server = JobServer(app, app.state.service, lambda: whole.replace(address))
    server.run(sockets=[listening])


@pytest.fixture
def start(tmp_path):
    """Starts a server in another process; returns the process and a client."""
    from openai import DefaultHttpxClient

    running = []

    def begin():
        address = tmp_path / f"address{len(running)}"
        process = start_process(serve, tmp_path / "state", address, output=tmp_path / "printed.txt")
        running.append(process)
        while not address.exists():
            assert process.is_alive(), (tmp_path / "printed.txt").read_text()
            time.sleep(0.01)
        return process, DefaultHttpxClient(base_url=address.read_text(), timeout=30)

    yield begin
    for process in running:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_killed_server_keeps_what_is_done_and_draws_the_rest(start):
    process, client = start()
    names = {seed: submit(client, seed, "me" if seed % 2 else "you") for seed in range(12)}
    wait_for(client, names[3])
    before = {record["id"]: record for record in client.get("/api/jobs").json()["jobs"]}
    process.kill()
    process.join()
    assert sum(record["status"] == "done" for record in before.values()) < 12
    _, client = start()
    for seed, name in names.items():
        record = wait_for(client, name)
        assert (record["status"], record["images"][0]["seed"]) == ("done", seed)
        if before[name]["status"] == "done":
            assert record == before[name]
    assert len(client.get("/api/jobs").json()["jobs"]) == 12


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_ends_soon_although_somebody_listens(start):
    process, client = start()
    names = [submit(client, seed) for seed in range(50)]
    with client.stream("GET", f"/api/jobs/{names[-1]}/events") as events:
        lines = events.iter_lines()
        next(lines)
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert end_of(process, 20) in (0, -signal.SIGTERM)
        assert time.monotonic() - begun < 10
        assert "event: done" not in list(lines)
    _, client = start()
    assert wait_for(client, names[0])["status"] == "done"


def test_jobs_that_waited_come_back_in_their_order(tmp_path):
    first = FakeDrawer()
    first.hold.clear()
    with TestClient(make_app(tmp_path, first)) as client:
        names = [submit(client, seed, "me") for seed in range(3)]
        names.insert(1, submit(client, 9, "you"))
        wait_for(client, names[0], "running")
        # The application stops the job that runs after its step.
        first.hold.set()
    second = FakeDrawer()
    with TestClient(make_app(tmp_path, second)) as client:
        assert {wait_for(client, name)["status"] for name in names} == {"done"}
    begun = [*first.begun, *second.begun]
    # Whose turn it is first depends on whether the running job was done when the application stopped.
    assert begun[-3:] in ([9, 1, 2], [1, 9, 2])
    assert set(begun) == {0, 1, 2, 9}


def test_a_job_that_ends_the_process_again_and_again_is_given_up(tmp_path, drawer):
    record = Record("0" * 32, "tiny", "me", job(), status="running", attempts=3)
    gone = Record("1" * 32, "gone", "me", job())
    store = JobStore(tmp_path, Limits())
    store.save(record)
    store.save(gone)
    store.close()
    with TestClient(make_app(tmp_path, drawer)) as client:
        assert "stopped 3 times" in client.get(f"/api/jobs/{record.id}").json()["error"]["message"]
        assert "'gone'" in client.get(f"/api/jobs/{gone.id}").json()["error"]["message"]
    assert drawer.begun == []


def test_what_was_left_half_done_is_removed_and_what_cannot_be_read_is_put_aside(tmp_path, drawer):
    for folder in ("jobs/.x.json.abc.tmp", "images/ffffffffffffffffffffffffffffffff", "images/.tmp"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "jobs" / "broken.json").write_text('{"id":')
    (tmp_path / "jobs" / "other.json").write_text(json.dumps({"id": "x", "from": "another version"}))
    with TestClient(make_app(tmp_path, drawer)) as client:
        assert client.get("/api/jobs").json() == {"jobs": []}
        assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == ["broken.unreadable", "other.unreadable"]
        assert list((tmp_path / "images").iterdir()) == []


def test_two_servers_do_not_share_a_state_folder(tmp_path):
    store = JobStore(tmp_path, Limits())
    with pytest.raises(ValueError, match="Another server uses the state folder"):
        JobStore(tmp_path, Limits())
    store.close()
    JobStore(tmp_path, Limits()).close()


def test_the_state_folder_is_private(tmp_path):
    JobStore(tmp_path, Limits()).close()
    for name in ("jobs", "images"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
