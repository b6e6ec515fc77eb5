"""Jobs from submission to result, over HTTP."""

import io
import time

import pytest
from PIL import Image
from starlette.testclient import TestClient

from diffusers_flux_ext.server.limits import Limits

from .conftest import color, job, make_app, submit, wait_for


def pixel(client, record):
    """The color of a job's image."""
    answer = client.get(record["images"][0]["url"])
    return Image.open(io.BytesIO(answer.content)).getpixel((0, 0))


def test_a_job_is_drawn_and_described(client):
    record = wait_for(client, submit(client, 300))
    assert (record["status"], record["step"], record["steps"], record["error"]) == ("done", 4, 4, None)
    assert record["job"] == {"model": {"path": "tiny"}, "call": {"seed": 300, "prompt": "a circle"}}
    assert record["images"] == [{"url": f"{record['url']}/images/0", "seed": 300, "width": 16, "height": 16}]
    assert pixel(client, record) == color(300)
    assert record["created"] <= record["started"] <= record["finished"]


def test_two_clients_take_turns_and_get_their_own_images(client, drawer):
    drawer.hold.clear()
    submit(client, 0, "first")
    jobs = {seed: submit(client, seed, "first") for seed in range(1, 6)}
    jobs |= {seed: submit(client, seed, "second") for seed in range(101, 104)}
    positions = {seed: client.get(f"/api/jobs/{name}").json()["position"] for seed, name in jobs.items()}
    drawer.hold.set()
    for seed, name in jobs.items():
        assert pixel(client, wait_for(client, name)) == color(seed)
    assert drawer.begun == [0, 1, 101, 2, 102, 3, 103, 4, 5]
    assert sorted(positions, key=positions.get) == drawer.begun[1:]


def test_every_model_has_a_thread_of_its_own(client, drawer):
    drawer.hold.clear()
    names = [submit(client, 1), submit(client, 2, model={"path": "other"})]
    for name in names:
        wait_for(client, name, "running")
    drawer.hold.set()
    assert {wait_for(client, name)["status"] for name in names} == {"done"}


def test_a_full_queue_says_when_to_come_again(tmp_path, drawer):
    drawer.hold.clear()
    with TestClient(make_app(tmp_path, drawer, Limits(queue=2)), base_url="http://localhost") as client:
        wait_for(client, submit(client), "running")
        kept = [submit(client, 1), submit(client, 2)]
        answer = client.post("/api/jobs", json=job(3))
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        drawer.hold.set()
        assert [wait_for(client, name)["status"] for name in kept] == ["done", "done"]
        assert len(client.get("/api/jobs").json()["jobs"]) == 3
        assert "flux_ext_refused_total 1.0" in client.get("/api/metrics").text


def test_a_running_job_stops_within_one_step(client, drawer):
    drawer.hold.clear()
    name = submit(client, 7)
    wait_for(client, name, "running")
    answer = client.delete(f"/api/jobs/{name}")
    assert (answer.status_code, answer.json()) == (202, {"id": name, "status": "running"})
    drawer.hold.set()
    assert wait_for(client, name)["status"] == "cancelled"
    assert drawer.seen == [(7, 1)]


def test_a_waiting_job_that_is_cancelled_is_never_begun(client, drawer):
    drawer.hold.clear()
    first, second = submit(client, 1), submit(client, 2)
    assert client.delete(f"/api/jobs/{second}").json()["status"] == "cancelled"
    drawer.hold.set()
    wait_for(client, first)
    assert client.get(f"/api/jobs/{second}").json()["status"] == "cancelled"
    assert drawer.begun == [1]


def test_a_finished_job_can_be_removed(client, tmp_path):
    record = wait_for(client, submit(client))
    assert client.delete(record["url"]).json()["status"] == "removed"
    for path in (record["url"], record["images"][0]["url"], f"{record['url']}/events"):
        assert client.get(path).status_code == 404
    assert client.delete(record["url"]).status_code == 404
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == []
    assert [path.name for path in (tmp_path / "images").iterdir()] == []


def test_a_job_that_takes_too_long_fails(tmp_path, drawer):
    with TestClient(make_app(tmp_path, drawer, Limits(job_seconds=0.01)), base_url="http://localhost") as client:
        drawer.hold.clear()
        name = submit(client)
        wait_for(client, name, "running")
        time.sleep(0.02)
        drawer.hold.set()
        assert "longer than 0.01 s" in wait_for(client, name)["error"]["message"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_breaks_is_told_without_a_trace_and_the_next_one_is_drawn(client, drawer):
    drawer.fails = RuntimeError("secret at /srv/models/flux1-dev.safetensors")
    record = wait_for(client, submit(client, 1))
    assert record["status"] == "failed"
    assert record["error"]["type"] == "server_error"
    assert "secret" not in client.get(record["url"]).text
    drawer.fails = None
    assert wait_for(client, submit(client, 2))["status"] == "done"


def test_a_wrong_job_names_its_field_and_is_not_kept(client):
    answer = client.post("/api/jobs", json={"call": {"seed": "x"}})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "call.seed"
    assert client.post("/api/check", json={"call": {"seed": "x"}}).json() == answer.json()
    assert client.post("/api/check", json=job()).json() == {"ok": True}
    assert client.get("/api/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    "entry, field",
    [
        ({"model": {"path": "tinny"}}, "model.path"),
        ({"model": {"path": "/etc"}}, "model.path"),
        ({"model": {"path": "tiny", "revision": "x"}}, "model.revision"),
        ({"model": 3}, "model"),
        ({"call": {"num_inference_steps": 101}}, "call.num_inference_steps"),
        ({"call": {"width": 4096, "height": 16}}, "call.width"),
        ({"call": {"num_images_per_prompt": 9}}, "call.num_images_per_prompt"),
        ({"call": {"prompt": ["a"] * 3, "num_images_per_prompt": 3}}, "call.num_images_per_prompt"),
        ({"conditions": [{}] * 17}, "conditions"),
        ({"conditions": [{"prompts": ["a"] * 65}]}, "conditions.0.prompts"),
        ({"loras": [{"path": "style"}] * 17}, "loras"),
        ({"memory": {"vram_gib": 1}}, "memory.vram_gib"),
    ],
)
def test_what_is_too_much_or_not_offered_is_named(client, entry, field):
    answer = client.post("/api/jobs", json=entry)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["problems"]


def test_jobs_are_listed_page_by_page_and_by_status(client, drawer):
    names = [submit(client, seed) for seed in range(5)]
    for name in names:
        wait_for(client, name)
    drawer.hold.clear()
    waiting = submit(client, 9)
    listed = [record["id"] for record in client.get("/api/jobs").json()["jobs"]]
    assert listed == [waiting, *reversed(names)]
    page = client.get("/api/jobs", params={"limit": 2, "before": listed[2]}).json()["jobs"]
    assert [record["id"] for record in page] == listed[3:5]
    done = client.get("/api/jobs", params={"status": "done"}).json()["jobs"]
    assert [record["id"] for record in done] == listed[1:]
    drawer.hold.set()


def test_the_oldest_finished_jobs_go_when_more_are_kept_than_may(tmp_path, drawer):
    with TestClient(make_app(tmp_path, drawer, Limits(keep_jobs=3)), base_url="http://localhost") as client:
        names = [submit(client, seed) for seed in range(5)]
        wait_for(client, names[-1])
        assert [record["id"] for record in client.get("/api/jobs").json()["jobs"]] == names[:1:-1]
        assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names[2:]
