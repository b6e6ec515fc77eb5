"""The texts of entities: T5's hidden states, and where their padding is."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils import logging

from ..canvas import Canvas
from .prompt_padding import encoding_texts


logger = logging.get_logger(__name__)


def encode_text(
    pipe: Any, texts: list[str], length: int, canvas: Canvas, mask_padding: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """T5 hidden states of some texts, padded to one length; warns with what does not fit.

    Args:
        pipe (`Encoders`): Gives T5 and its tokenizer.
        texts (`list[str]`): The texts.
        length (`int`): Tokens of each text.
        canvas (`Canvas`): Gives device and data type.
        mask_padding (`bool`, defaults to `False`): Whether to hide padding from T5, and to say where it is.

    Returns:
        `tuple`: a `torch.Tensor` of shape `(len(texts), length, 4096)`; and if padding is hidden another of shape
        `(len(texts), length)`, boolean, false for padding, else `None`.

    Raises:
        ValueError: if the pipeline has no T5.
    """
    if pipe.text_encoder_2 is None or pipe.tokenizer_2 is None:
        raise ValueError(
            "Entities are encoded with T5, but this pipeline was made without `text_encoder_2` or `tokenizer_2`. Load "
            "them, also where `prompt_embeds` are given for the global prompt."
        )
    with encoding_texts(pipe, mask_padding) as masks:
        for text, ids in zip(texts, pipe.tokenizer_2(texts).input_ids):
            if len(ids) > length:
                cut = pipe.tokenizer_2.decode(ids[length - 1 : -1])
                logger.warning(
                    f"The prompt {text!r} has {len(ids)} tokens, but {length} fit; this was cut off: {cut!r}."
                )
        embeds = pipe._get_t5_prompt_embeds(texts, max_sequence_length=length, device=canvas.device)
    return embeds.to(canvas.dtype), masks[0] if masks else None
