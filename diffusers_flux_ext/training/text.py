"""Text encoders inside of the trained module, where they are trained themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..inputs.text import check_text_length


class TextEncoding(torch.nn.Module):
    """CLIP and T5 with their tokenizers; the forward pass maps texts to embeddings, with gradients.

    Args:
        pipe (`FluxPipeline`): Gives the encoders and the tokenizers.
        length (`int`, defaults to 512): T5 tokens of a text.
    """

    def __init__(self, pipe: Any, length: int = 512) -> None:
        super().__init__()
        self.text_encoder, self.text_encoder_2 = pipe.text_encoder, pipe.text_encoder_2
        # A pipeline is not a module, so that its transformer does not become a part of this one.
        self._pipe, self.length = pipe, length

    def forward(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode texts.

        Args:
            texts (`Sequence[str]`): The texts.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: T5 hidden states `(texts, length, 4096)` and CLIP's pooled output
            `(texts, 768)`.
        """
        device, listed = self.text_encoder.device, list(texts)
        pooled = self._pipe._get_clip_prompt_embeds(listed, device=device)
        hidden_states = self._pipe._get_t5_prompt_embeds(listed, max_sequence_length=self.length, device=device)
        check_text_length(hidden_states, self.length)
        return hidden_states, pooled
