"""What is told of a running call after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from .preview import PreviewMap


@dataclass(frozen=True, eq=False)
class StepInfo:
    """A step that has been made.

    Args:
        step (`int`): Its number, from 1 on.
        total (`int`): The number of steps.
        preview (`Callable[[], PIL.Image.Image]`):
            Makes a small image of what is being drawn: one pixel for each of 8 x 8. It is called before `on_step`
            returns, if at all. Its map of colours is fitted once for each VAE, before the first step.
    """

    step: int
    total: int
    preview: Callable[[], Image.Image]


OnStep = Callable[[StepInfo], None]


@contextmanager
def followed(pipe: Any, on_step: OnStep | None, previews: PreviewMap | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of a call with which `on_step` hears of each step.

    Args:
        pipe (`FluxConditionedPipeline`): The pipeline.
        on_step (`Callable[[StepInfo], None]`, *optional*): Called after each step.
        previews (`PreviewMap`, *optional*): From latents to colours; needed with `on_step`.
    """
    if on_step is None or previews is None:
        yield {}
        return
    last = _Last(pipe, previews)

    def after_step(running: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        try:
            on_step(StepInfo(index + 1, running.num_timesteps, last.preview))
        except Exception as error:
            raise _Stopped from error
        return {}

    try:
        with last.listening():
            yield {"callback_on_step_end": after_step}
    except _Stopped as stopped:
        # What the caller raised, and not as an error of the call.
        raise stopped.__cause__ or stopped from None


class _Stopped(Exception):
    """Holds what `on_step` raised."""


class _Last:
    """What the last step started from."""

    def __init__(self, pipe: Any, previews: PreviewMap) -> None:
        self.pipe, self.previews = pipe, previews
        self.grid = (1, 1)
        self.step: tuple[torch.Tensor, float, torch.Tensor] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        pipe, scheduler = self.pipe, self.pipe.scheduler
        denoise, advance = pipe.denoise, scheduler.step

        def noted_denoise(latents: torch.Tensor, latent_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            rows, columns = (int(latent_ids[:, axis].max()) + 1 for axis in (1, 2))
            self.grid = (rows, columns)
            return denoise(latents, latent_ids, *args, **kwargs)

        def noted_step(velocity: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            self.step = (velocity, float(timestep) / 1000, sample)
            return advance(velocity, timestep, sample, *args, **kwargs)

        pipe.denoise, scheduler.step = noted_denoise, noted_step
        try:
            yield
        finally:
            del pipe.denoise, scheduler.step
            self.step = None

    def preview(self) -> Image.Image:
        """Return the estimate of the first image, as the step's velocity has it."""
        if self.step is None:
            raise RuntimeError("A preview is made within `on_step`, but the call is over.")
        velocity, sigma, sample = self.step
        estimate = sample[:1].float() - sigma * velocity[:1].float()
        return self.previews.image(unpacked(estimate, self.grid))


def unpacked(latents: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return packed latents `(1, tokens, 64)` as `(16, 2 * rows, 2 * columns)`."""
    rows, columns = grid
    return latents[0].view(rows, columns, -1, 2, 2).permute(2, 0, 3, 1, 4).reshape(-1, 2 * rows, 2 * columns)
