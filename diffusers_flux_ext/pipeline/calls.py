"""The calls of the transformer in one denoising loop, whoever runs the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .._sharing import one_forward
from ..caches.rules import CacheWatch
from ..denoise import DenoisingStep, PlanCache, PreparedCall, predict_velocity, prepare_call
from ..encoded import EncodedConditions
from ..parallel.ranks import ranks_of
from ..sequence import Contribution


class LoopCalls:
    """The calls of the transformer in one loop, which share attention plans and the state of caches.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer.
        encoded (`EncodedConditions`): The conditions.
    """

    def __init__(self, transformer: Any, encoded: EncodedConditions) -> None:
        self._transformer, self._encoded = transformer, encoded
        self._plans, self._watch = PlanCache(), CacheWatch(transformer)

    def contributions(self, step: DenoisingStep, given: Contribution) -> tuple[DenoisingStep, list[Contribution]]:
        """Ask the conditions what they add to a step.

        Args:
            step (`DenoisingStep`): The step.
            given (`Contribution`): What the call has besides its conditions.

        Returns:
            `tuple[DenoisingStep, list[Contribution]]`: the step, with the prompt that a condition substitutes; and
            `given`, followed by one contribution per condition.
        """
        step = self._encoded.with_prompt(step)
        return step, [given, *self._encoded.contributions(step)]

    def velocity(self, step: DenoisingStep, given: Contribution) -> torch.Tensor:
        """Call the transformer.

        Args:
            step (`DenoisingStep`): The step.
            given (`Contribution`): What the call has besides its conditions.

        Returns:
            `torch.Tensor` of shape `(batch_size, target_length, 64)`
        """
        step, contributions = self.contributions(step, given)
        with self._watch.running(step, contributions):
            return predict_velocity(self._transformer, step, contributions, self._plans)

    def both_velocities(
        self, step: DenoisingStep, negative_step: DenoisingStep, given: Sequence[Contribution]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Call the transformer for both branches of guidance, on one device after the other or on two side by side.

        Args:
            step (`DenoisingStep`): The step of the conditional branch.
            negative_step (`DenoisingStep`): That of the unconditional branch.
            given (`Sequence[Contribution]`): What each branch has besides the conditions.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: their velocities.
        """
        ranks = ranks_of(self._transformer)
        if ranks is None or ranks.branch is None:
            return self.velocity(step, given[0]), self.velocity(negative_step, given[1])
        return ranks.exchange_branches(lambda: self._own_velocity(step, negative_step, given), step.latents)

    def _own_velocity(
        self, step: DenoisingStep, negative_step: DenoisingStep, given: Sequence[Contribution]
    ) -> torch.Tensor:
        ranks = ranks_of(self._transformer)
        if ranks is not None and ranks.branch == "cond":
            return self.velocity(step, given[0])
        self._encoded.share_with(step, negative_step)
        return self.velocity(negative_step, given[1])

    @contextmanager
    def prepared(self, step: DenoisingStep, contributions: list[Contribution]) -> Iterator[PreparedCall]:
        """Prepare the same call for another caller, who makes it inside this context.

        Args:
            step (`DenoisingStep`): The step that [`contributions`] returned.
            contributions (`list[Contribution]`): The contributions that it returned.

        Returns:
            `PreparedCall`
        """
        with self._watch.running(step, contributions), one_forward(self._transformer):
            yield prepare_call(self._transformer, step, contributions, self._plans)


def next_timestep(timesteps: torch.Tensor, index: int, num_samples: int) -> torch.Tensor:
    """Return where the scheduler goes from a step, in [0, 1], for every sample; 0 from the last one.

    Args:
        timesteps (`torch.Tensor` of shape `(steps,)`): The timesteps of the loop.
        index (`int`): Number of the step.
        num_samples (`int`): Number of samples.

    Returns:
        `torch.Tensor` of shape `(num_samples,)`
    """
    following = timesteps[index + 1] if index + 1 < len(timesteps) else torch.zeros_like(timesteps[index])
    return following.expand(num_samples) / 1000
