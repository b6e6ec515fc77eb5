"""The padding of texts: hiding it from T5, and the masks that hide it from the transformer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .._compat import is_compiled
from .._sharing import one_thread
from .checks import shown


TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


@contextmanager
def encoding_texts(pipe: Any, hide_padding: bool) -> Iterator[list[torch.Tensor]]:
    """Around the encoding of texts: one thread at a time, since tokenizers and adapters of encoders hold state.

    Args:
        pipe (`FluxPipeline`): Gives the encoders and the tokenizers.
        hide_padding (`bool`): Whether T5 sees no padding.

    Returns:
        `list[torch.Tensor]`: See [`padding_hidden_from_t5`], whose errors it raises.
    """
    parts = [getattr(pipe, name, None) for name in TEXT_PARTS]
    with one_thread(*parts), padding_hidden_from_t5(pipe, hide_padding) as masks:
        yield masks


@contextmanager
def padding_hidden_from_t5(pipe: Any, hidden: bool) -> Iterator[list[torch.Tensor]]:
    """Let T5 see no padding inside this context.

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
        mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*): What came as their mask.
        embeds (`torch.Tensor` of shape `(batch_size, length, 4096)`, *optional*): What came as embeddings.
        mask_padding (`bool`): Whether padding is to be hidden.

    Raises:
        TypeError: if the mask is no boolean or integer tensor.
        ValueError: if one of the three came without the others, or the mask has a wrong shape or hides everything.
    """
    if mask is None:
        if embeds is not None and mask_padding:
            raise ValueError(
                f"`mask_padding=True` came with `{name}`, whose padding cannot be told from their values. Give "
                f"`{name}_mask`, too: the tokenizer's `attention_mask` of shape {tuple(embeds.shape[:2])}."
            )
        return
    if embeds is None:
        raise ValueError(f"`{name}_mask` came without `{name}`. Texts need no mask: `mask_padding=True` makes it.")
    if not mask_padding:
        raise ValueError(f"`{name}_mask` came without `mask_padding=True`. Give both or neither.")
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
        raise ValueError(f"`{name}_mask` hides all tokens of a prompt. Show one at least.")
