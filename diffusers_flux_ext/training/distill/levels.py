"""The noise levels between a student's steps."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ...canvas import Canvas
from ...pipeline.call_inputs import set_timesteps


@dataclass(frozen=True, eq=False)
class StudentLevels:
    """Tells where the borders of a student's steps are. It can be sent to other processes.

    Args:
        scheduler (`SchedulerMixin`): The pipeline's scheduler; it is not changed.
        token_size (`int`): Pixels of a token's side.
        num_steps (`int`): The student's steps.
    """

    scheduler: Any
    token_size: int
    num_steps: int

    def borders(self, height: int, width: int) -> torch.Tensor:
        """Return the noise levels between the steps, which depend on the image's size.

        Args:
            height (`int`): Pixels.
            width (`int`): Pixels.

        Returns:
            `torch.Tensor` of shape `(num_steps + 1,)`: falling, on the CPU.
        """
        canvas = Canvas(height, width, 1, 1, torch.device("cpu"), torch.float32, token_size=self.token_size)
        asked: Any = SimpleNamespace(scheduler=deepcopy(self.scheduler))
        set_timesteps(asked, self.num_steps, None, None, canvas)
        sigmas: torch.Tensor = asked.scheduler.sigmas.cpu().clone()
        return sigmas
