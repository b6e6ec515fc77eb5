"""Batches of a student: what it should make of the teacher's noise, or where its next step should lead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..assemble import BatchMaker, Place, Way
from ..batch import TeacherPath
from ..data.loader import SampleBatch


Method = Literal["end_to_end", "per_step"]


@dataclass(frozen=True)
class DistillationBatchMaker(BatchMaker):
    """Makes batches of samples that have a teacher's path.

    `levels` draws, from (0, 1), which of the student's steps is trained: the first one from 0 to `1 / steps`, and so
    on. Only `"per_step"` asks it.

    Args:
        method (`"end_to_end"` or `"per_step"`, defaults to `"end_to_end"`):
            Whether the whole sampler is compared with the teacher's image, or one step with the straight line between
            two states of the teacher.
    """

    method: Method = "end_to_end"

    def _way(self, samples: SampleBatch, place: Place) -> Way:
        if samples.path is None:
            raise ValueError("The samples have no path of a teacher. Wrap them in `DistilledSamples`.")
        if self.method == "end_to_end":
            path = samples.path
            sigma = path.sigmas[:1].expand(path.states.shape[0])
            return Way(path.states[:, -1], path.states[:, 0], sigma, path.sigmas)
        steps = len(samples.path.sigmas) - 1
        drawn = self._levels(place, samples.path.states.shape[2])
        return straight_way(samples.path, (drawn * steps).long().clamp(0, steps - 1))


def straight_way(path: TeacherPath, steps: torch.Tensor) -> Way:
    """Return the straight line on which a teacher's path goes during one step, prolonged to noise and image.

    Mixing its two ends at the level of the step's beginning gives the teacher's state there, and their difference is
    the velocity that leads to its next state.

    Args:
        path (`TeacherPath`): The paths of a batch.
        steps (`torch.Tensor` of shape `(batch_size,)`): Which step of each sample, from 0.

    Returns:
        `Way`
    """
    samples = torch.arange(len(steps))
    sigma, following = path.sigmas[steps], path.sigmas[steps + 1]
    state, reached = (path.states[samples, each].float() for each in (steps, steps + 1))
    velocity = (reached - state) / (following - sigma)[:, None, None]
    level = sigma[:, None, None]
    return Way(state - level * velocity, state + (1 - level) * velocity, sigma)
