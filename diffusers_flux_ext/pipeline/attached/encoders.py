"""What conditions may ask of a pipeline of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from ...canvas import Canvas
from ...inputs.text import encode_text
from ..call_inputs import image_processor_of


class StockEncoders:
    """The [`Encoders`] of a pipeline of diffusers, which lacks some of them.

    Args:
        pipe (`DiffusionPipeline`): The pipeline; everything else that a condition asks for is looked up there.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.image_processor = image_processor_of(pipe)
        self.image_encoder = getattr(pipe, "image_encoder", None)
        self.feature_extractor = getattr(pipe, "feature_extractor", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def encode_text(
        self, texts: list[str], length: int, canvas: Canvas, mask_padding: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode texts with T5; see [`FluxConditionedPipeline.encode_text`]."""
        return encode_text(self, texts, length, canvas, mask_padding)
