"""From samples to a batch: noise levels, noise and dropout, each drawn for a place in an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .batch import TrainingBatch
from .data.loader import SampleBatch
from .draws import Draws


LevelDraw = Callable[[Draws, int, Sequence[int], int, int], torch.Tensor]
"""Maps draws, the update, places in it, samples of the update and tokens of an image to noise levels."""


@dataclass(frozen=True)
class Place:
    """Where samples stand in an update.

    Args:
        update (`int`): Number of the update, from 0.
        positions (`Sequence[int]`): The samples' places among all samples of the update, over all processes.
        total (`int`): Number of samples of the update.
    """

    update: int
    positions: Sequence[int]
    total: int


@dataclass(frozen=True, eq=False)
class Way:
    """From where to where the samples of a batch go, and where on the way they are; see [`TrainingBatch`].

    Args:
        latents (`torch.Tensor` of shape `(batch_size, length, 64)`): The end.
        noise (`torch.Tensor` of the same shape): The beginning.
        sigma (`torch.Tensor` of shape `(batch_size,)`): Noise levels.
        schedule (`torch.Tensor` of shape `(steps + 1,)`, *optional*): Noise levels of a sampler.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    schedule: torch.Tensor | None = None


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of samples; what it draws depends on the seed, the update and the samples' places alone.

    Args:
        draws (`Draws`): The run's randomness.
        levels (`Callable`): Draws noise levels.
        dtype (`torch.dtype`): The model's data type.
        guidance (`float` or `tuple[float, float]`, *optional*):
            The embedded guidance, or the range that it is drawn from; `None` for models without one.
        condition_dropout (`Sequence[float]`, *optional*): Share of samples without each condition.
    """

    draws: Draws
    levels: LevelDraw
    dtype: torch.dtype
    guidance: float | tuple[float, float] | None = 1.0
    condition_dropout: Sequence[float] = ()

    def __call__(self, samples: SampleBatch, place: Place) -> TrainingBatch:
        """Make a batch.

        Args:
            samples (`SampleBatch`): The samples.
            place (`Place`): Where they stand in the update.

        Returns:
            `TrainingBatch`: on the CPU.
        """
        way = self._way(samples, place)
        return TrainingBatch(
            latents=way.latents,
            noise=way.noise,
            sigma=way.sigma,
            schedule=way.schedule,
            latent_ids=latent_ids(samples.height, samples.width, way.latents.shape[1]),
            prompt_embeds=samples.prompt_embeds.to(self.dtype),
            pooled_prompt_embeds=samples.pooled_prompt_embeds.to(self.dtype),
            guidance=self._guidance(place),
            conditions=samples.conditions,
            keep=self._keep(place),
            mask=samples.mask,
            weight=samples.weight,
            preserved=samples.preserved,
            indices=samples.indices,
            texts=samples.texts,
            strength=samples.strength,
        )

    def _way(self, samples: SampleBatch, place: Place) -> Way:
        latents = samples.latents
        if samples.deviation is not None:
            latents = latents + samples.deviation * self._normal("posterior", place, latents)
        return Way(latents, self._normal("noise", place, latents), self._levels(place, latents.shape[1]))

    def _levels(self, place: Place, tokens: int) -> torch.Tensor:
        return self.levels(self.draws, place.update, place.positions, place.total, tokens)

    def _keys(self, place: Place) -> list[tuple[int, int]]:
        return [(place.update, position) for position in place.positions]

    def _normal(self, purpose: str, place: Place, like: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.draws.normal(purpose, *at, shape=like.shape[1:]) for at in self._keys(place)])

    def _guidance(self, place: Place) -> torch.Tensor | None:
        if self.guidance is None:
            return None
        if not isinstance(self.guidance, tuple):
            return torch.full((len(place.positions),), float(self.guidance))
        low, high = self.guidance
        drawn = [float(self.draws.uniform("guidance", *at)) for at in self._keys(place)]
        return torch.tensor([low + (high - low) * each for each in drawn])

    def _keep(self, place: Place) -> torch.Tensor | None:
        if not any(self.condition_dropout):
            return None
        rows = [
            [float(self.draws.uniform("condition", number, *at)) >= share for at in self._keys(place)]
            for number, share in enumerate(self.condition_dropout)
        ]
        return torch.tensor(rows)


def latent_ids(height: int, width: int, length: int) -> torch.Tensor:
    """Return the rotary positions of latents.

    Args:
        height (`int`): Pixels.
        width (`int`): Pixels.
        length (`int`): Number of tokens, from which the pixels per token follow.

    Returns:
        `torch.Tensor` of shape `(length, 3)`, float32.
    """
    token = round((height * width / length) ** 0.5)
    rows, columns = height // token, width // token
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
