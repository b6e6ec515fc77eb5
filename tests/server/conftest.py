"""A server whose images are drawn by a stand-in, so that its own work can be tested at once."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from diffusers_flux_ext.server.app import create_app
from diffusers_flux_ext.server.errors import RequestError
from diffusers_flux_ext.server.launch import JobServer, address_of, open_socket
from diffusers_flux_ext.server.limits import Limits
from diffusers_flux_ext.server.room import ModelRoom
from diffusers_flux_ext.server.served import Served, ServedLoRA, ServedModel
from diffusers_flux_ext.server.service import JobService
from diffusers_flux_ext.server.store import JobStore
from diffusers_flux_ext.server.uploads import UploadStore


SERVED = Served(
    {"tiny": ServedModel("tiny", {"path": "tiny"}), "other": ServedModel("other", {"path": "tiny"})},
    {"style": ServedLoRA("style", {"path": "/srv/loras/style.safetensors"}, 0.8)},
)


def color(seed: int) -> tuple[int, int, int]:
    """The color of an image that the stand-in draws."""
    return (seed % 256, seed // 256 % 256, 77)


@dataclass
class FakeDrawer:
    """Draws one color for each seed, step by step; `hold` keeps it before a step."""

    steps: int = 4
    hold: threading.Event = field(default_factory=threading.Event)
    begun: list[int] = field(default_factory=list)
    seen: list[tuple[int, int]] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    fails: Exception | None = None

    def __post_init__(self) -> None:
        self.hold.set()

    def arguments(self, job: Mapping[str, Any]) -> None:
        """It takes any."""

    def check(self, job: Mapping[str, Any]) -> int | None:
        """Refuse what is not a number."""
        if not isinstance(job["call"].get("seed", 0), int):
            raise RequestError(422, "call.seed: is not a number", [("call.seed", "is not a number")])
        return self.steps

    def can_join(self, job: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether they are drawn together."""
        return job.get("conditions") == other.get("conditions")

    def draw(
        self,
        model: str,
        jobs: Sequence[Mapping[str, Any]],
        folders: Sequence[Path],
        on_step: Callable[..., None],
    ) -> list[list[dict[str, Any]]]:
        """Draw."""
        seeds = [job["call"].get("seed", 0) for job in jobs]
        seed = seeds[0]
        self.begun.append(seed)
        self.together.append(len(seeds))
        for step in range(1, self.steps + 1):
            self.hold.wait(20)
            if self.fails is not None:
                raise self.fails
            self.seen.append((seed, step))
            on_step(SimpleNamespace(step=step, total=self.steps, preview=lambda: Image.new("RGB", (16, 16))))
        for each, folder in zip(seeds, folders):
            Image.new("RGB", (16, 16), color(each)).save(folder / "0.png")
        return [[{"file": "0.png", "seed": each, "width": 16, "height": 16}] for each in seeds]

    def release(self, model: str) -> None:
        """There is nothing to release."""


def make_app(folder: Path, drawer: FakeDrawer, limits: Limits | None = None, **options: Any) -> FastAPI:
    """An application with the stand-in."""
    limits = limits or Limits()
    room = ModelRoom({}, None, drawer.release)
    service = JobService(SERVED, drawer, JobStore(folder, limits), UploadStore(folder, limits), limits, room)
    return create_app(service, {"type": "object"}, {"models": []}, "1.2.3", **options)


@pytest.fixture
def drawer() -> FakeDrawer:
    """The stand-in."""
    return FakeDrawer()


@pytest.fixture
def client(tmp_path: Path, drawer: FakeDrawer) -> Iterator[TestClient]:
    """A client of a running application."""
    with TestClient(make_app(tmp_path, drawer), base_url="http://localhost") as client:
        yield client


def job(seed: int = 0, **more: Any) -> dict[str, Any]:
    """A job of the stand-in."""
    return {"call": {"seed": seed, "prompt": "a circle"}, **more}


def submit(client: TestClient, seed: int = 0, who: str = "me", **more: Any) -> str:
    """Submit a job; return its id."""
    answer = client.post("/api/jobs", json=job(seed, **more), headers={"X-Client-Id": who})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def wait_for(client: TestClient, name: str, *statuses: str) -> dict[str, Any]:
    """Wait until a job has one of some statuses; return its record."""
    statuses = statuses or ("done", "failed", "cancelled")
    end, pause = time.monotonic() + 60, 0.005
    while time.monotonic() < end:
        record = client.get(f"/api/jobs/{name}").json()
        if record["status"] in statuses:
            return record
        time.sleep(pause)
        # Questions that come fast would slow the drawing.
        pause = min(0.2, 1.5 * pause)
    raise AssertionError(f"still {record['status']}")


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an application on a port of loopback; yields its address."""
    started, socket = threading.Event(), open_socket("127.0.0.1", 0)
    server = JobServer(app, app.state.service, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    assert started.wait(30)
    yield address_of(socket)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
