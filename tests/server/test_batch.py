"""Jobs that are drawn in one call, where the server is told so."""

import threading
from io import BytesIO

import pytest
from PIL import Image
from starlette.testclient import TestClient

from diffusers_flux_ext.server.errors import RequestError
from diffusers_flux_ext.server.limits import Limits
from tests.server.conftest import FakeDrawer, color, make_app, submit, wait_for


@pytest.fixture
def client(tmp_path, drawer):
    with TestClient(make_app(tmp_path, drawer, Limits(batch=3)), base_url="http://localhost") as client:
        yield client


def image_of(client, name):
    content = client.get(f"/api/jobs/{name}/images/0").content
    return Image.open(BytesIO(content)).getpixel((0, 0))


def waiting(client, drawer, *jobs):
    """Submit jobs while another one is being drawn, which is the first."""
    drawer.hold.clear()
    first = submit(client, 99, conditions=["alone"])
    while not drawer.begun:
        pass
    return first, [submit(client, seed, **more) for seed, more in jobs]


def test_neighbours_that_fit_are_drawn_in_one_call(client, drawer):
    first, names = waiting(client, drawer, *((seed, {}) for seed in range(4)))
    drawer.hold.set()
    assert [wait_for(client, name)["status"] for name in (first, *names)] == ["done"] * 5
    assert drawer.together == [1, 3, 1]
    assert [image_of(client, name) for name in names] == [color(seed) for seed in range(4)]


def test_nobody_is_passed_over(client, drawer):
    other = {"conditions": ["other"]}
    _, names = waiting(client, drawer, (1, {}), (2, other), (3, {}))
    drawer.hold.set()
    assert all(wait_for(client, name)["status"] == "done" for name in names)
    assert drawer.together == [1, 1, 1, 1]


class Gated(FakeDrawer):
    """Waits before it draws several jobs."""

    def __post_init__(self):
        super().__post_init__()
        self.ready, self.go = threading.Event(), threading.Event()

    def draw(self, model, jobs, folders, on_step):
        if len(jobs) > 1:
            self.seen.clear()
            self.ready.set()
            self.go.wait(20)
        return super().draw(model, jobs, folders, on_step)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_call_stops_within_a_step_once_nobody_wants_it(tmp_path, kept):
    drawer = Gated()
    with TestClient(make_app(tmp_path, drawer, Limits(batch=2)), base_url="http://localhost") as client:
        _, names = waiting(client, drawer, (1, {}), (2, {}))
        drawer.hold.set()
        assert drawer.ready.wait(20)
        for name in names[kept:]:
            assert client.delete(f"/api/jobs/{name}").status_code == 202
        drawer.go.set()
        found = [wait_for(client, name)["status"] for name in names]
        assert found == ["done" if kept else "cancelled", "cancelled"]
        assert len(drawer.seen) == (drawer.steps if kept else 1)


def test_what_is_wrong_with_one_does_not_concern_the_others(tmp_path):
    class Picky(FakeDrawer):
        def draw(self, model, jobs, folders, on_step):
            if any(job["call"]["seed"] == 1 for job in jobs):
                self.together.append(len(jobs))
                raise RequestError(422, "call.seed: is odd", [("call.seed", "is odd")])
            return super().draw(model, jobs, folders, on_step)

    drawer = Picky()
    with TestClient(make_app(tmp_path, drawer, Limits(batch=3)), base_url="http://localhost") as client:
        _, names = waiting(client, drawer, *((seed, {}) for seed in range(3)))
        drawer.hold.set()
        assert [wait_for(client, name)["status"] for name in names] == ["done", "failed", "done"]
        assert drawer.together == [1, 3, 1, 1, 1]
