"""What a server accepts, how long it waits and how much it keeps."""

from dataclasses import asdict, dataclass
from typing import Any


MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """Bounds of everything that a client can make large.

    Attributes:
        upload_bytes (`int`, *optional*, defaults to 32 MiB): Size of one upload, or of one file of a form.
        body_bytes (`int`, *optional*, defaults to 64 MiB): Size of one request with a job or a form.
        job_bytes (`int`, *optional*, defaults to 1 MiB): Size of one job as JSON without its images.
        pixels (`int`, *optional*, defaults to 4096 x 4096): Pixels of one image that is sent.
        side (`int`, *optional*, defaults to 2048): Longest side of an image that is drawn, in pixels.
        steps (`int`, *optional*, defaults to 100): Denoising steps.
        images (`int`, *optional*, defaults to 8): Images of one job.
        conditions (`int`, *optional*, defaults to 16): Conditions of one job, and LoRAs.
        entries (`int`, *optional*, defaults to 64): Entries of one list of texts or inputs of a condition.
        queue (`int`, *optional*, defaults to 100): Jobs that wait.
        batch (`int`, *optional*, defaults to 1): Jobs that are drawn in one call where they differ in prompt and seed.
        streams (`int`, *optional*, defaults to 100): Connections that listen to events at once.
        job_seconds (`float`, *optional*, defaults to 1800): Longest time that a job may be drawn.
        idle_seconds (`float`, *optional*, defaults to 30): Longest pause of a client that sends a request's body.
        attempts (`int`, *optional*, defaults to 3): How often a job is begun if the process ends in the middle.
        keep_jobs (`int`, *optional*, defaults to 1000): Finished jobs that are kept; the oldest goes first.
        keep_bytes (`int`, *optional*, defaults to 10 GiB): Bytes of uploads that are kept, and of images as well.
        keep_uploads (`int`, *optional*, defaults to 10000): Uploads that are kept.
        unused_seconds (`float`, *optional*, defaults to 86400): How long an upload is kept that no job names.
    """

    upload_bytes: int = 32 * MIB
    body_bytes: int = 64 * MIB
    job_bytes: int = MIB
    pixels: int = 4096 * 4096
    side: int = 2048
    steps: int = 100
    images: int = 8
    conditions: int = 16
    entries: int = 64
    queue: int = 100
    batch: int = 1
    streams: int = 100
    job_seconds: float = 1800.0
    idle_seconds: float = 30.0
    attempts: int = 3
    keep_jobs: int = 1000
    keep_bytes: int = 10 * GIB
    keep_uploads: int = 10_000
    unused_seconds: float = 86400.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"`{name}` of the limits must be above 0, got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """Return what clients are told."""
        names = ("upload_bytes", "pixels", "queue", "steps", "side", "images", "conditions")
        return {name: getattr(self, name) for name in names}
