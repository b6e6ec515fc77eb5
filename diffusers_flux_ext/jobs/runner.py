"""Running jobs one after the other, with everything kept that the next one may need."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .building import Objects, call_error, canvas_size
from .caching import running_with
from .checking import check_job
from .files import JobFiles
from .job import Job
from .models import LoadedModel, Models
from .preview import PreviewMap
from .steps import OnStep, followed


@dataclass(frozen=True, eq=False)
class JobResult:
    """What a job gave.

    Args:
        images (`list[PIL.Image.Image]`): The images.
        seeds (`list[int]`):
            For each image the seed of its noise. Where the job gives one seed for several images it is the same for
            all, since one generator draws the noise of all of them: the job draws them again, together.
        seconds (`float`): How long it took, loading included.
    """

    images: list[Image.Image]
    seeds: list[int]
    seconds: float


class JobRunner:
    """Runs jobs. It serves one thread: each worker has its own.

    Args:
        device (`torch.device` or `str`, *optional*): Where to run; the accelerator, or the CPU without one.
        dtype (`torch.dtype`, *optional*):
            Data type of models whose job names none; bfloat16 on an accelerator and float32 on the CPU by default.
        vram_gib (`float`, *optional*): The budget of jobs that name none, in GiB.
        keep (`int`, defaults to 1): How many models are kept. Their modules, LoRAs and encoded prompts are, too.
    """

    def __init__(
        self,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        vram_gib: float | None = None,
        keep: int = 1,
    ) -> None:
        self.device, self.vram_gib = _device(device), vram_gib
        own = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self._models = Models(dtype or own, keep)
        self._previews: dict[int, tuple[Any, PreviewMap]] = {}

    def run(self, job: Job, files: JobFiles | None = None, on_step: OnStep | None = None) -> JobResult:
        """Run a job.

        Args:
            job (`Job`): The job.
            files ([`JobFiles`], *optional*): Its files; relative to the working directory by default.
            on_step (`Callable[[StepInfo], None]`, *optional*):
                Called after each step. What it raises, for example [`JobCancelled`], ends the call at once.

        Returns:
            `JobResult`

        Raises:
            JobError: if something is wrong with the job; before anything is loaded, where that can be seen.
        """
        started, files = time.perf_counter(), files or JobFiles()
        check_job(job, files)
        pipe, model = self._models.pipeline(job, files)
        load = functools.partial(self._models.module, job, files)
        objects = Objects(files, canvas_size(job), load)
        conditions = [objects.condition(each, f"conditions.{index}") for index, each in enumerate(job.conditions)]
        call, added = (
            objects.call(job),
            {name: load(each, f"additions.{name}") for name, each in job.additions.items()},
        )
        model.adapters.bring(pipe, job, files, added)
        model.placement.bring(pipe, job, self.device, self.vram_gib, conditions)
        images = self._draw(pipe, model, job, {**_placed(call, self.device), "conditions": conditions}, on_step)
        return JobResult(images, _seeds(job, len(images)), time.perf_counter() - started)

    def _draw(
        self, pipe: Any, model: LoadedModel, job: Job, call: dict[str, Any], on_step: OnStep | None
    ) -> list[Image.Image]:
        kept = model.encodings.used_by(pipe, model.adapters.loaded, hidden=getattr(job.call, "mask_padding", False))
        previews = self._preview_map(pipe.vae) if on_step is not None else None
        with running_with(job.memory.cache, pipe), kept, followed(pipe, on_step, previews) as told:
            try:
                return list(pipe(**call, **told).images)
            except (TypeError, ValueError) as error:
                raise call_error(error, job) from error
            finally:
                # A call that was stopped leaves its models on the card.
                pipe.maybe_free_model_hooks()

    def _preview_map(self, vae: Any) -> PreviewMap:
        known = self._previews.get(id(vae))
        if known is None or known[0] is not vae:
            self._previews.clear()
            self._previews[id(vae)] = known = (vae, PreviewMap.of(vae))
        return known[1]


def _device(device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def _placed(value: Any, device: torch.device) -> Any:
    """Move the tensors of a call to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _placed(each, device) for name, each in value.items()}
    return [_placed(each, device) for each in value] if isinstance(value, list) else value


def _seeds(job: Job, count: int) -> list[int]:
    seeds = job.call.seed
    return [each.root for each in seeds] if isinstance(seeds, tuple) else [seeds.root] * count
