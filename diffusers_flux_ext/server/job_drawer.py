"""Drawing jobs with the job runner: one runner for each model."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..jobs import Job, JobError, JobFiles, JobRunner, can_join, check_job, joined, read_job, save_result_image
from ..jobs.job import DEFAULT_PIPELINE, call_model
from ..methods.classes import pipeline_methods
from ..tiny import named_model
from .drawing import OnStep
from .errors import RequestError
from .limits import Limits
from .resolving import resolve
from .served import Served
from .uploads import UploadStore


class JobDrawer:
    """Checks and draws jobs in clients' words.

    Args:
        served (`Served`): What they may name.
        uploads (`UploadStore`): Their inputs.
        limits (`Limits`): What is accepted.
        device (`str`, *optional*): Where to draw; the accelerator, or the CPU without one.
        vram_gib (`float`, *optional*): GiB of the card that a call may take.
    """

    def __init__(
        self,
        served: Served,
        uploads: UploadStore,
        limits: Limits,
        device: str | None = None,
        vram_gib: float | None = None,
    ) -> None:
        self._served, self._device, self._vram_gib = served, device, vram_gib
        # No path of a client is ever opened.
        self._files = JobFiles(
            uploads=uploads.read, allow_paths=False, max_bytes=limits.upload_bytes, max_pixels=limits.pixels
        )
        self._runners: dict[str, JobRunner] = {}

    def arguments(self, job: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of the call arguments of a job's pipeline; none for one that is not known.

        Args:
            job (`Mapping[str, Any]`): The job.
        """
        name = job.get("pipeline", DEFAULT_PIPELINE)
        known = isinstance(name, str) and name in pipeline_methods()
        return frozenset(call_model(name).model_fields) if known else frozenset()

    def check(self, job: Mapping[str, Any]) -> int | None:
        """Check everything that can be checked without weights; return the number of steps if it is given.

        Args:
            job (`Mapping[str, Any]`): The job.

        Raises:
            RequestError: with every wrong field.
        """
        with _answered():
            resolved = resolve(read_job(job), self._served)
            check_job(resolved, self._files)
        steps: int | None = getattr(resolved.call, "num_inference_steps", None)
        return steps

    def can_join(self, job: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether two jobs of a model can be drawn in one call, see [`~jobs.can_join`]."""
        return can_join(job, other)

    def draw(
        self, model: str, jobs: Sequence[Mapping[str, Any]], folders: Sequence[Path], on_step: OnStep
    ) -> list[list[dict[str, Any]]]:
        """Draw jobs in one call and write their images, see [`Drawer.draw`].

        Raises:
            RequestError: if something is wrong with a job, or there is not enough memory.
        """
        with _answered():
            shown = [read_job(job) for job in jobs]
            whole = shown[0] if len(jobs) == 1 else joined(jobs)
            result = self._runner(model).run(resolve(whole, self._served), self._files, on_step)
        drawn = list(zip(result.images, result.seeds, strict=True))
        # Several jobs have an image each.
        parts = [drawn] if len(jobs) == 1 else [[each] for each in drawn]
        return [self._save(*each) for each in zip(shown, parts, folders, strict=True)]

    def _save(self, job: Job, drawn: Sequence[tuple[Image.Image, int]], folder: Path) -> list[dict[str, Any]]:
        written = []
        for index, (image, seed) in enumerate(drawn):
            name = f"{index}.{job.output.format}"
            # The metadata have the names that the client gave.
            save_result_image(image, folder / name, job, index, self._files)
            written.append({"file": name, "seed": seed, "width": image.width, "height": image.height})
        return written

    def _runner(self, model: str) -> JobRunner:
        if model not in self._runners:
            self._runners[model] = JobRunner(device=self._device, vram_gib=self._vram_gib)
        return self._runners[model]

    def release(self, model: str) -> None:
        """Let the memory of a model go."""
        if self._runners.pop(model, None) is None:
            return
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


def weights_size(job: Job | Mapping[str, Any]) -> int | None:
    """Return the bytes of the weights of a `model` entry, or `None` for a repository, which has to be asked for.

    Args:
        job (`Mapping[str, Any]`): The entry.
    """
    path = Path(named_model(str(dict(job)["path"])))
    if path.is_file():
        return path.stat().st_size
    files = [each for each in path.rglob("*") if each.suffix in (".safetensors", ".bin", ".gguf")]
    return sum(map(os.path.getsize, files)) if path.is_dir() else None


@contextmanager
def _answered() -> Iterator[None]:
    """Turn errors that a client can mend into answers."""
    try:
        yield
    except JobError as error:
        problems = [(problem.field, problem.message) for problem in error.problems]
        message = "; ".join(f"{field}: {text}" if field else text for field, text in problems)
        raise RequestError(422, message, problems) from None
    except torch.OutOfMemoryError:
        raise RequestError(503, "The server has not enough memory for this job. Draw a smaller image.") from None
