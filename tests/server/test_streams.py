"""Events over HTTP."""

import threading
import time

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from diffusers_flux_ext.server.limits import Limits

from .conftest import FakeDrawer, listening, make_app, submit, wait_for


@pytest.fixture
def served(tmp_path, drawer):
    """A client of a server on a port."""
    with listening(make_app(tmp_path, drawer, Limits(streams=2))) as address, httpx.Client(base_url=address) as client:
        yield client


def read(response):
    """The events of a stream: ids, names and data."""
    event = {}
    for line in response.iter_lines():
        if not line and event:
            yield event["id"], event["event"], event["data"]
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def follow(client, name, last=None):
    """Everything that a stream tells until it ends."""
    with client.stream("GET", f"/api/jobs/{name}/events", headers={"Last-Event-ID": last} if last else {}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return list(read(response))


def test_a_job_is_followed_from_the_queue_to_its_image(served, drawer):
    drawer.hold.clear()
    first = submit(served, 1)
    wait_for(served, first, "running")
    second, third = submit(served, 2), submit(served, 3)
    heard = []

    def hear():
        with served.stream("GET", f"/api/jobs/{third}/events") as response:
            for event in read(response):
                heard.append(event)

    thread = threading.Thread(target=hear)
    thread.start()
    while not heard:
        time.sleep(0.01)
    served.delete(f"/api/jobs/{second}")
    drawer.hold.set()
    thread.join(20)
    names = [name for _, name, _ in heard]
    assert names[0] == "queued"
    assert heard[0][2] == '{"position":1}'
    assert [name for name in names if name not in ("queued", "preview")] == ["started", *["step"] * 4, "done"]
    assert "preview" in names
    assert [data for _, name, data in heard if name == "step"][-1] == '{"step":4,"total":4}'
    assert f"/api/jobs/{third}/images/0" in heard[-1][2]
    assert len({number for number, _, _ in heard}) == len(heard)


def test_a_stream_goes_on_where_it_was_interrupted(served, drawer):
    drawer.hold.clear()
    name = submit(served, 1)
    wait_for(served, name, "running")
    with served.stream("GET", f"/api/jobs/{name}/events") as response:
        events = read(response)
        known = [next(events), next(events)]
    drawer.hold.set()
    rest = follow(served, name, known[-1][0])
    assert not {number for number, _, _ in known} & {number for number, _, _ in rest}
    assert [event for _, event, _ in rest if event != "preview"][-1] == "done"


def test_a_finished_job_tells_its_end_once(served):
    name = submit(served, 1)
    wait_for(served, name)
    (end,) = follow(served, name)
    assert end[1] == "done"
    answer = served.get(f"/api/jobs/{name}/events", headers={"Last-Event-ID": end[0]})
    assert answer.status_code == 204


def test_only_so_many_listen_at_once(served, drawer):
    drawer.hold.clear()
    name = submit(served)
    path = f"/api/jobs/{name}/events"
    with served.stream("GET", path) as one, served.stream("GET", path) as two:
        lines = [one.iter_lines(), two.iter_lines()]
        assert [next(each) for each in lines] == ["event: queued"] * 2
        answer = served.get(path)
        assert answer.status_code == 429
        assert "Retry-After" in answer.headers
    drawer.hold.set()
    wait_for(served, name)
    assert follow(served, name)


def test_a_cancelled_job_ends_its_stream(served, drawer):
    drawer.hold.clear()
    name = submit(served)
    wait_for(served, name, "running")
    served.delete(f"/api/jobs/{name}")
    drawer.hold.set()
    assert [event for _, event, _ in follow(served, name)][-1] == "cancelled"


def test_no_preview_is_made_for_nobody(tmp_path):
    class Watching(FakeDrawer):
        def draw(self, model, jobs, folders, on_step):
            def told(info):
                info.preview = lambda: pytest.fail("A preview was made.")
                on_step(info)

            return super().draw(model, jobs, folders, told)

    with TestClient(make_app(tmp_path, Watching())) as client:
        assert wait_for(client, submit(client))["status"] == "done"
