"""What is known of a job: its state from the queue to its images."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal


Status = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED: tuple[Status, ...] = ("done", "failed", "cancelled")
ID_PATTERN = "^[0-9a-f]{32}$"


@dataclass
class Record:
    """A job and what became of it.

    Attributes:
        id (`str`): 32 hexadecimal digits that begin with the time, so that records sort by age.
        model (`str`): The name of the model that draws it.
        client (`str`): Whose turn it is in the queue; no address or token.
        job (`dict`): The job in the client's words; its inputs are uploads.
        uploads (`list[str]`): Digests of the uploads that it names.
        status (`str`): `queued`, `running`, `done`, `failed` or `cancelled`.
        created, started, finished (`str`, *optional*): Times in UTC, as ISO 8601 has them.
        step, steps (`int`): Steps that are done, and those of the whole job.
        attempts (`int`): How often it was begun.
        error (`dict`, *optional*): Why it failed.
        images (`list[dict]`): Seed, width, height and file of each image.
    """

    id: str
    model: str
    client: str
    job: dict[str, Any]
    uploads: list[str] = field(default_factory=list)
    status: Status = "queued"
    created: str = field(default_factory=lambda: now())
    started: str | None = None
    finished: str | None = None
    step: int = 0
    steps: int | None = None
    attempts: int = 0
    error: dict[str, Any] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        return asdict(self)

    def public(self, position: int | None = None) -> dict[str, Any]:
        """Return the record as clients see it.

        Args:
            position (`int`, *optional*): Jobs that are drawn before it, for one that waits.

        Returns:
            `dict[str, Any]`
        """
        shown = ("id", "status", "created", "started", "finished", "step", "steps", "error", "job")
        return {
            **{name: getattr(self, name) for name in shown},
            "position": position,
            "url": f"/api/jobs/{self.id}",
            "images": self.public_images(),
        }

    def public_images(self) -> list[dict[str, Any]]:
        """Return the images with their addresses."""
        return [
            {
                "url": f"/api/jobs/{self.id}/images/{index}",
                **{name: image[name] for name in ("seed", "width", "height")},
            }
            for index, image in enumerate(self.images)
        ]


def new_id() -> str:
    """Return the id of a new record: ids sort by time, and nobody can guess one."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"


def now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
