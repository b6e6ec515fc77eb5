"""A server from what it is started with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI

from ..jobs import job_schema
from .app import create_app
from .job_drawer import JobDrawer, weights_size
from .limits import GIB, Limits
from .offers import make_options
from .room import ModelRoom
from .served import Served
from .service import JobService
from .store import JobStore
from .uploads import UploadStore


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        served (`Served`): What it offers.
        state (`Path`): The folder of jobs, images and uploads.
        limits (`Limits`): What it accepts and keeps.
        device (`str`, *optional*): Where to draw.
        vram_gib (`float`, *optional*): GiB of the card for all models.
        tokens (`Sequence[str]`): Tokens, one of which each request needs; none needs none.
        hosts (`Collection[str]`, *optional*): Names of the server in the `Host` header; `None` takes any.
        version (`str`): The version of the package.
    """

    served: Served
    state: Path
    limits: Limits = field(default_factory=Limits)
    device: str | None = None
    vram_gib: float | None = None
    tokens: Sequence[str] = ()
    hosts: Collection[str] | None = None
    version: str = "0"


def make_server(settings: Settings) -> tuple[FastAPI, JobService]:
    """Make the application of a server, and the service that it asks.

    Args:
        settings (`Settings`): What it is started with.

    Returns:
        `tuple[FastAPI, JobService]`

    Raises:
        ValueError: if another server uses the state folder.
        OSError: if the state folder cannot be written.
    """
    served, limits = settings.served, settings.limits
    store, uploads = JobStore(settings.state, limits), UploadStore(settings.state, limits)
    drawer = JobDrawer(served, uploads, limits, settings.device, settings.vram_gib)
    budget = None if settings.vram_gib is None else int(settings.vram_gib * GIB)
    sizes = {name: weights_size(model.model) for name, model in served.models.items()}
    # A repository's size is not known before it is there, so it draws alone under a budget.
    known = {name: (budget or 0) if size is None else size for name, size in sizes.items()}
    service = JobService(served, drawer, store, uploads, limits, ModelRoom(known, budget, drawer.release))
    schema = job_schema()
    app = create_app(
        service, schema, make_options(served, schema, limits), settings.version, settings.tokens, settings.hosts
    )
    return app, service
