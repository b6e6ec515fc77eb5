"""From samples to a batch: captions, noise levels, noise and dropout, each drawn for a place in an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..condition import FluxCondition
from .batch import TrainingBatch, TrainingSample, stack_conditions
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


@dataclass(frozen=True)
class BatchMaker:
    """Makes batches of samples; what it draws depends on the seed, the update and the samples' places alone.

    Args:
        conditions (`Sequence[FluxCondition]`): The conditions, in the order of the samples' encoded inputs.
        draws (`Draws`): The run's randomness.
        levels (`Callable`): Draws noise levels.
        dtype (`torch.dtype`): The model's data type.
        guidance (`float` or `tuple[float, float]`, *optional*):
            The embedded guidance, or the range that it is drawn from; `None` for models without one.
        caption_dropout (`float`, defaults to 0.0): Share of samples with the empty caption.
        condition_dropout (`Sequence[float]`, *optional*): Share of samples without each condition.
    """

    conditions: Sequence[FluxCondition]
    draws: Draws
    levels: LevelDraw
    dtype: torch.dtype
    guidance: float | tuple[float, float] | None = 1.0
    caption_dropout: float = 0.0
    condition_dropout: Sequence[float] = ()

    def __call__(self, samples: Sequence[TrainingSample], place: Place) -> TrainingBatch:
        """Make a batch.

        Args:
            samples (`Sequence[TrainingSample]`): The samples, of one signature.
            place (`Place`): Where they stand in the update.

        Returns:
            `TrainingBatch`: on the CPU.

        Raises:
            ValueError: if the samples differ in what must agree.
        """
        latents = torch.cat([self._latents(sample, *at) for sample, at in zip(samples, self._keys(place))])
        length = latents.shape[1]
        prompts = [self._prompt(sample, *at) for sample, at in zip(samples, self._keys(place))]
        masks = [sample.mask for sample in samples if sample.mask is not None]
        return TrainingBatch(
            latents=latents,
            noise=torch.stack([self.draws.normal("noise", *at, shape=latents.shape[1:]) for at in self._keys(place)]),
            sigma=self.levels(self.draws, place.update, place.positions, place.total, length),
            latent_ids=latent_ids(samples[0]),
            prompt_embeds=torch.cat([hidden_states for hidden_states, _ in prompts]).to(self.dtype),
            pooled_prompt_embeds=torch.cat([pooled for _, pooled in prompts]).to(self.dtype),
            guidance=self._guidance(place),
            conditions=stack_conditions(self.conditions, [sample.conditions for sample in samples]),
            keep=self._keep(place),
            mask=torch.cat(masks) if masks else None,
            weight=torch.tensor([sample.weight for sample in samples]),
            preserved=torch.tensor([sample.preserved for sample in samples]),
            indices=torch.tensor([sample.index for sample in samples]),
        )

    def _keys(self, place: Place) -> list[tuple[int, int]]:
        return [(place.update, position) for position in place.positions]

    def _latents(self, sample: TrainingSample, update: int, position: int) -> torch.Tensor:
        if sample.deviation is None:
            return sample.latents
        return sample.latents + sample.deviation * self.draws.normal(
            "posterior", update, position, shape=sample.latents.shape
        )

    def _prompt(self, sample: TrainingSample, update: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        variants = [name for name in sample.prompts if name] or [""]
        drawn = self.draws.uniform("caption", update, position, shape=(2,)).tolist()
        dropped = drawn[0] < self.caption_dropout
        return sample.prompts["" if dropped else variants[int(drawn[1] * len(variants))]]

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


def latent_ids(sample: TrainingSample) -> torch.Tensor:
    """Return the rotary positions of a sample's latents.

    Args:
        sample (`TrainingSample`): Gives the size.

    Returns:
        `torch.Tensor` of shape `(length, 3)`, float32.
    """
    length = sample.latents.shape[1]
    # The number of pixels per token follows from the sizes, whatever the VAE.
    token = round((sample.height * sample.width / length) ** 0.5)
    rows, columns = sample.height // token, sample.width // token
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
