"""FLUX.1-Fill without an image: the channels that DiffSynth-Studio gives it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..canvas import Canvas
from ..condition import Encoders, FluxCondition
from ..demand import Demand
from ..denoise import DenoisingStep
from ..sequence import Contribution


IMAGE_CHANNELS, MASK_CHANNELS = 64, 256


@dataclass(frozen=True, eq=False)
class BlankFill(FluxCondition):
    """Latents of zero in place of an image, and a hole as large as the canvas."""

    def demand(self, prompt_tokens: int) -> Demand:
        """Channels add no tokens."""
        return Demand()

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Return `"channels"` `(1, num_tokens, 320)`."""
        shape = (1, canvas.num_tokens)
        parts = [torch.zeros(*shape, IMAGE_CHANNELS), torch.ones(*shape, MASK_CHANNELS)]
        return {"channels": torch.cat(parts, dim=2).to(canvas.device, canvas.dtype)}

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the further channels of the canvas."""
        return Contribution(channels=[encoded["channels"].expand(step.latents.shape[0], -1, -1)])
