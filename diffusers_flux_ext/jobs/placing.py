"""Where the weights of a model and of a job's modules are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.utils import logging

from ..condition import FluxCondition
from ..pipeline.placing import place_pipeline
from .building import canvas_size, words
from .errors import JobError
from .job import Job


logger = logging.get_logger(__name__)


class Placement:
    """Where the weights of a model are; changed when the next job wants it otherwise."""

    def __init__(self) -> None:
        self._pipe: Any = None
        self._state: Any = None

    def bring(
        self, pipe: Any, job: Job, device: torch.device, vram_gib: float | None, conditions: Iterable[FluxCondition]
    ) -> None:
        """Place the weights for a job.

        Args:
            pipe (`FluxConditionedPipeline`): The pipeline.
            job (`Job`): The job.
            device (`torch.device`): Where to run.
            vram_gib (`float`, *optional*): The budget of jobs that name none.
            conditions (`Iterable[FluxCondition]`): Its conditions, whose modules are placed, too.

        Raises:
            JobError: if the budget is too small.
        """
        budget, given = job.memory.vram_gib or vram_gib, list(conditions)
        modules = [module for each in given for module in modules_of(each)]
        offload = "none" if device.type == "cpu" else job.memory.offload
        state: tuple[Any, ...] = (budget, offload, str(device))
        if budget is not None:
            state += (canvas_size(job), job.call.num_images_per_prompt, tuple(map(id, modules)))
        else:
            for module in modules:
                module.to(device)
        if self._pipe is pipe and self._state == state:
            return
        self.leave()
        self._pipe = pipe
        if offload != job.memory.offload:
            logger.warning(
                f"`offload={job.memory.offload}` has no effect without an accelerator: everything runs on the CPU."
            )
        if budget is not None:
            width, height = canvas_size(job)
            try:
                pipe.enable_vram_budget(budget, device=device, height=height, width=width, conditions=given)
            except ValueError as error:
                raise JobError.of("memory.vram_gib", words(error)) from error
        else:
            place_pipeline(pipe, device, offload)
        self._state = state

    def leave(self) -> None:
        """Take off what keeps weights in their places."""
        if self._pipe is not None and self._state is not None:
            self._pipe.disable_vram_budget()
            self._pipe.remove_all_hooks()
        self._pipe = self._state = None


def modules_of(condition: FluxCondition) -> list[torch.nn.Module]:
    """Return the modules in the fields of a condition."""
    return [value for value in vars(condition).values() if isinstance(value, torch.nn.Module)]
