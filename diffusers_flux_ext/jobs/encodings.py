"""Encoded prompts, kept for the next job with the same ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any


MOST = 64


class Encodings:
    """What the text encoders of a model gave for the texts that were used last."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Any] = OrderedDict()

    @contextmanager
    def used_by(self, pipe: Any, state: Hashable, hidden: bool = False) -> Iterator[None]:
        """Let a pipeline take encoded texts from here, and leave new ones here.

        Args:
            pipe (`FluxConditionedPipeline`): The pipeline.
            state (`Hashable`): What the encoders' results depend on besides the texts: their LoRAs.
            hidden (`bool`, defaults to `False`):
                Whether padding is hidden; masks are noted while a prompt is encoded, so it is encoded each time.
        """
        encode_prompt, encode_text = pipe.encode_prompt, pipe.encode_text

        def known_prompt(*args: Any, **kwargs: Any) -> Any:
            if hidden or kwargs.get("prompt_embeds") is not None:
                return encode_prompt(*args, **kwargs)
            return self._known_or(lambda: encode_prompt(*args, **kwargs), "prompt", state, args, kwargs)

        def known_text(texts: list[str], length: int, canvas: Any, mask_padding: bool = False) -> Any:
            key = (texts, length, canvas.device, canvas.dtype, mask_padding)
            return self._known_or(lambda: encode_text(texts, length, canvas, mask_padding), "text", state, key)

        pipe.encode_prompt, pipe.encode_text = known_prompt, known_text
        try:
            yield
        finally:
            del pipe.encode_prompt, pipe.encode_text

    def _known_or(self, encode: Callable[[], Any], *key: Any) -> Any:
        spelled = repr(key)
        if spelled not in self._known:
            self._known[spelled] = encode()
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        self._known.move_to_end(spelled)
        return self._known[spelled]
