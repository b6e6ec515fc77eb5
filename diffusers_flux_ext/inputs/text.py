"""Texts: encoding them, hiding their padding, and the token groups that conditions make of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import logging

from .._compat import is_compiled
from .._sharing import one_thread
from ..canvas import Canvas
from ..denoise import DenoisingStep
from ..sequence import TokenGroup
from .checks import shown


TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


@contextmanager
def encoding_texts(pipe: Any, hide_padding: bool) -> Iterator[list[torch.Tensor]]:
    """Encode texts in one thread at a time, since tokenizers and adapters of encoders hold state.

    Args:
        pipe (`FluxPipeline`): Gives the encoders and the tokenizers.
        hide_padding (`bool`): Whether to hide padding from T5.

    Returns:
        `list[torch.Tensor]`: See [`padding_hidden_from_t5`], whose errors it raises.
    """
    parts = [getattr(pipe, name, None) for name in TEXT_PARTS]
    with one_thread(*parts), padding_hidden_from_t5(pipe, hide_padding) as masks:
        yield masks


@contextmanager
def padding_hidden_from_t5(pipe: Any, hidden: bool) -> Iterator[list[torch.Tensor]]:
    """Hide padding from T5 inside this context.

    Padding that only the transformer ignores would still have reached the other tokens through T5, and the result
    would depend on how much of it there is.

    Args:
        pipe (`FluxPipeline`): Gives T5 and its tokenizer.
        hidden (`bool`): Whether to do anything.

    Returns:
        `list[torch.Tensor]`: filled by each call of T5 with a mask `(batch_size, length)` on the CPU: boolean, false
        for padding. Empty unless `hidden`.

    Raises:
        ValueError: if T5 is compiled as a whole, which fixes whether it takes a mask.
    """
    masks: list[torch.Tensor] = []
    if not hidden or pipe.text_encoder_2 is None:
        yield masks
        return
    if is_compiled(pipe.text_encoder_2):
        raise ValueError(
            "`mask_padding` gives T5 a mask, which a compiled `text_encoder_2` ignores. Leave T5 uncompiled (the "
            "transformer may be compiled), or give `prompt_embeds` and `prompt_embeds_mask`."
        )
    padding, thread = pipe.tokenizer_2.pad_token_id, threading.current_thread()

    def add_mask(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        # Another thread may run the same T5 meanwhile.
        if threading.current_thread() is not thread:
            return None
        visible = (args[0] if args else kwargs["input_ids"]) != padding
        masks.append(visible.cpu())
        return args, {**kwargs, "attention_mask": visible.long()}

    handle = pipe.text_encoder_2.register_forward_pre_hook(add_mask, with_kwargs=True)
    try:
        yield masks
    finally:
        handle.remove()


def check_padding_mask(name: str, mask: Any, embeds: torch.Tensor | None, mask_padding: bool) -> None:
    """Check a mask that comes with the embeddings of a prompt.

    Args:
        name (`str`): The embeddings' argument, for errors: `"prompt_embeds"` or `"negative_prompt_embeds"`.
        mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*): The mask given with them.
        embeds (`torch.Tensor` of shape `(batch_size, length, 4096)`, *optional*): The embeddings.
        mask_padding (`bool`): Whether padding is to be hidden.

    Raises:
        TypeError: if the mask is not a boolean or integer tensor.
        ValueError: if one of the three was given without the others, or the mask has a wrong shape or hides
        everything.
    """
    if mask is None:
        if embeds is not None and mask_padding:
            raise ValueError(
                f"`mask_padding=True` was given with `{name}`, whose values do not show which tokens are padding. "
                f"Give `{name}_mask`, too: the tokenizer's `attention_mask` of shape {tuple(embeds.shape[:2])}."
            )
        return
    if embeds is None:
        raise ValueError(
            f"`{name}_mask` was given without `{name}`. Texts need no mask: `mask_padding=True` makes it."
        )
    if not mask_padding:
        raise ValueError(f"`{name}_mask` was given without `mask_padding=True`. Give both or neither.")
    dense = isinstance(mask, torch.Tensor) and mask.layout is torch.strided and not mask.is_meta
    if not dense or mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"`{name}_mask` must be a boolean or integer tensor, 1 for tokens to be seen, got {shown(mask)}."
        )
    if mask.ndim != 2 or mask.shape[0] not in (1, embeds.shape[0]) or mask.shape[1] != embeds.shape[1]:
        raise ValueError(
            f"`{name}_mask` has the shape {tuple(mask.shape)}, but `{name}` is of {embeds.shape[0]} prompts of "
            f"{embeds.shape[1]} tokens. Give {tuple(embeds.shape[:2])}."
        )
    if not bool(mask.bool().any(dim=1).all()):
        raise ValueError(f"`{name}_mask` hides all tokens of a prompt. Leave at least one visible.")


logger = logging.get_logger(__name__)


def encode_text(
    pipe: Any, texts: list[str], length: int, canvas: Canvas, mask_padding: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return T5 hidden states of some texts, padded to one length; warn with the text that does not fit.

    Args:
        pipe (`Encoders`): Gives T5 and its tokenizer.
        texts (`list[str]`): The texts.
        length (`int`): Tokens of each text.
        canvas (`Canvas`): Gives device and data type.
        mask_padding (`bool`, defaults to `False`): Whether to hide padding from T5, and to return where it is.

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
    check_text_length(embeds, length)
    return embeds.to(canvas.dtype), masks[0] if masks else None


def check_text_length(embeds: torch.Tensor, length: int) -> None:
    """Raise a `RuntimeError` unless texts were padded as asked for.

    diffusers' own pipelines set the padding of a tokenizer without a lock, so one that shares it in another thread may
    change the padding between our setting it and our use of it.

    Args:
        embeds (`torch.Tensor` of shape `(texts, length, 4096)`): T5 hidden states.
        length (`int`): Tokens that were asked for.
    """
    if embeds.shape[1] != length:
        raise RuntimeError(
            f"`tokenizer_2` returned {embeds.shape[1]} tokens instead of {length}: a pipeline changed its padding in "
            f"another thread. Give pipelines of diffusers that run in other threads a tokenizer of their own "
            f"(`copy.deepcopy(pipe.tokenizer_2)`), or `prompt_embeds`."
        )


def check_text_width(owner: str, width: int, transformer: Any) -> None:
    """Raise a `ValueError` unless tokens are as wide as the transformer's text."""
    expected = transformer.config.joint_attention_dim
    if width != expected:
        raise ValueError(
            f"The encoder of {owner} makes tokens of width {width}, but the transformer's text is {expected} wide. "
            f"Use an encoder that was trained for this transformer."
        )


def text_group(
    name: str, tokens: torch.Tensor, step: DenoisingStep, in_prompt: bool | torch.Tensor = False
) -> TokenGroup:
    """Make a text group of tokens, at position zero, like all text.

    Args:
        name (`str`): The group's name.
        tokens (`torch.Tensor` of shape `(1 or batch_size, length, width)`): Its tokens.
        step (`DenoisingStep`): Gives the device and the data type of positions.
        in_prompt (`bool` or `torch.Tensor`, defaults to `False`): See [`TokenGroup`].

    Returns:
        `TokenGroup`
    """
    return TokenGroup(name, tokens, step.prompt.ids.new_zeros(tokens.shape[1], 3), in_prompt)
