"""The teacher: the ordinary pipeline, observed on its way from noise to an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...condition import FluxCondition
from ...pipeline.conditioned import FluxConditionedPipeline
from ..batch import TeacherPath, TrainingSample
from ..data.cache.encoding import Prompt
from ..drawing import draw_sample
from .levels import StudentLevels


@dataclass(frozen=True)
class TeacherOptions:
    """How the teacher draws.

    Args:
        num_inference_steps (`int`, defaults to 28): Steps.
        guidance_scale (`float`, defaults to 3.5): Embedded guidance; ignored by models without one.
        true_cfg_scale (`float`, defaults to 1.0):
            Scale of classifier-free guidance; above 1 each step runs the transformer twice.
    """

    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    true_cfg_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Teacher:
    """Draws samples by the ordinary pipeline, with all their conditions, and notes where it passes.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline, as of [`drawing_pipeline`].
        conditions (`Sequence[FluxCondition]`): The samples' conditions, which may be bare.
        options (`TeacherOptions`): How it draws.
        levels (`StudentLevels`): Gives the levels at which the path is noted.
        negative (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            The encoded negative prompt, for classifier-free guidance.
    """

    pipe: FluxConditionedPipeline
    conditions: Sequence[FluxCondition]
    options: TeacherOptions
    levels: StudentLevels
    negative: Prompt | None = None

    def path(self, sample: TrainingSample, text: str, noise: torch.Tensor) -> TeacherPath:
        """Draw a sample.

        Args:
            sample (`TrainingSample`): Gives the size, the prompt and what the conditions encoded.
            text (`str`): Which of its captions.
            noise (`torch.Tensor` of shape `(1, length, 64)`): Where to start.

        Returns:
            `TeacherPath`: on the CPU, in the pipeline's data type.

        Raises:
            ValueError: if the pipeline's scheduler adds noise of its own, or skips levels.
        """
        states = [noise.to(self.pipe.transformer.dtype)]

        def note(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
            states.append(tensors["latents"].cpu())

        draw_sample(
            self.pipe, self.conditions, sample, text, num_inference_steps=self.options.num_inference_steps,
            guidance_scale=self.options.guidance_scale, true_cfg_scale=self.options.true_cfg_scale,
            latents=states[0].to(self.pipe.device), output_type="latent", callback_on_step_end=note,
            **self._negative(),
        )  # fmt: skip
        sigmas = self.pipe.scheduler.sigmas.cpu()
        if len(sigmas) != len(states) or self.pipe.scheduler.config.get("stochastic_sampling", False):
            raise ValueError(
                f"The scheduler {type(self.pipe.scheduler).__name__} has {len(sigmas)} noise levels for "
                f"{len(states) - 1} steps, or adds noise in its steps, so no student could follow the teacher's path. "
                f"Take a `FlowMatchEulerDiscreteScheduler` without `stochastic_sampling`."
            )
        borders = self.levels.borders(sample.height, sample.width)
        return TeacherPath(states_at(sigmas, torch.cat(states), borders)[None], borders)

    def _negative(self) -> dict[str, torch.Tensor]:
        if self.negative is None or self.options.true_cfg_scale <= 1:
            return {}
        names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
        device: Any = self.pipe.device
        return {name: each.to(device, self.pipe.transformer.dtype) for name, each in zip(names, self.negative)}


def states_at(sigmas: torch.Tensor, states: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
    """Return where an Euler sampler is at some noise levels; between two of its own it goes straight.

    Args:
        sigmas (`torch.Tensor` of shape `(levels,)`): Its noise levels, falling.
        states (`torch.Tensor` of shape `(levels, ...)`): Its latents there.
        borders (`torch.Tensor` of shape `(borders,)`): The levels that are asked for.

    Returns:
        `torch.Tensor` of shape `(borders, ...)`: of the data type of `states`.
    """
    found = []
    for border in borders.tolist():
        near = int((sigmas - border).abs().argmin())
        # Grids that share a level compute it in different ways.
        if abs(float(sigmas[near]) - border) < 1e-5:
            found.append(states[near])
            continue
        after = int((sigmas > border).sum())
        high, low = float(sigmas[after - 1]), float(sigmas[after])
        share = (high - border) / (high - low)
        found.append(torch.lerp(states[after - 1].float(), states[after].float(), share).to(states.dtype))
    return torch.stack(found)
