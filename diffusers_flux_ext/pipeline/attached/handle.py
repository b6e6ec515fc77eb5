"""The conditions on a pipeline of diffusers, and what its methods become meanwhile."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline

from ...condition import FluxCondition
from .encoders import StockEncoders
from .loop import AttachedLoop
from .record import CallRecord
from .replacement import Replacement


ATTACHED = "_flux_ext_attached"
"""The attribute of the pipeline that holds them."""

_METHODS = ("check_inputs", "encode_prompt", "prepare_latents", "progress_bar", "maybe_free_model_hooks")

Method = Callable[..., Any]


class AttachedConditions:
    """Conditions on a pipeline of diffusers, until [`detach`] or the end of a `with` block.

    Made by [`attach_conditions`]. Five methods of the one pipeline object are replaced; hooks on the transformer and
    the scheduler exist while its loop runs only.

    Args:
        pipe (`DiffusionPipeline`): The pipeline, which is not kept alive.
        conditions (`Sequence[FluxCondition]`): The conditions.
    """

    def __init__(self, pipe: DiffusionPipeline, conditions: Sequence[FluxCondition]) -> None:
        self.conditions = tuple(conditions)
        self._pipe = weakref.ref(pipe)
        self._records: WeakKeyDictionary[threading.Thread, CallRecord] = WeakKeyDictionary()
        self._loop: AttachedLoop | None = None
        self._pasting: Replacement | None = None
        self._replaced = [Replacement(pipe, name, getattr(self, f"_{name}")) for name in _METHODS]
        setattr(pipe, ATTACHED, self)

    def __enter__(self) -> AttachedConditions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(type(condition).__name__ for condition in self.conditions)})"

    def __deepcopy__(self, memo: Any) -> AttachedConditions:
        raise RuntimeError(f"{self!r} cannot be copied. Detach the conditions, and attach them to the copy as well.")

    def detach(self) -> None:
        """Take the conditions off; nothing of them is left on the pipeline. Nothing happens the second time.

        Raises:
            RuntimeError: if the pipeline is in its loop.
        """
        pipe = self._pipe()
        if self._loop is not None:
            raise RuntimeError(
                f"{self!r} of {type(pipe).__name__} cannot be detached while it draws. Detach after the call."
            )
        self._finish()
        for replacement in self._replaced:
            replacement.restore()
        if pipe is not None and vars(pipe).get(ATTACHED) is self:
            delattr(pipe, ATTACHED)

    def _finish(self) -> None:
        self._records.pop(threading.current_thread(), None)
        if self._pasting is not None:
            self._pasting.restore()
            self._pasting = None

    def _record(self) -> CallRecord | None:
        """Return what this thread's call has shown; `None` outside of calls and inside of their loop."""
        return None if self._loop is not None else self._records.get(threading.current_thread())

    def _check_inputs(self, check: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pipe: Any = self._pipe()
        if self._loop is not None:
            raise RuntimeError(
                f"{type(pipe).__name__} is called while it draws, in another thread or in its callback. One pipeline "
                f"of diffusers makes one call at a time: wait, or give each caller a pipeline and a scheduler of its "
                f"own and attach the conditions to both."
            )
        self._finish()
        # The call sets it before its loop; that of a copy of the pipeline sets the copy's.
        vars(pipe).pop("_num_timesteps", None)
        self._records[threading.current_thread()] = CallRecord()
        return check(*args, **kwargs)

    def _encode_prompt(self, encode: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        record = self._record()
        if record is not None:
            record.note_prompt(self._pipe(), args, kwargs)
        return encode(*args, **kwargs)

    def _prepare_latents(self, prepare: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        record = self._record()
        if record is None:
            return prepare(*args, **kwargs)
        return record.prepare_latents(self._pipe(), prepare, args, kwargs)

    def _progress_bar(self, make: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        record, pipe = self._record(), self._pipe()
        if record is None or record.latents is None:
            return make(*args, **kwargs)
        if "_num_timesteps" not in vars(pipe):
            raise RuntimeError(
                f"This {type(pipe).__name__} was copied while conditions were attached to it: {self!r}. Detach them "
                f"before copying, and attach them to the copy as well."
            )
        return self._running(pipe, record, lambda: make(*args, **kwargs))

    @contextmanager
    def _running(self, pipe: Any, record: CallRecord, make_bar: Callable[[], Any]) -> Iterator[Any]:
        """Run the conditions in the loop, which is inside the context of the progress bar in every pipeline."""
        self._finish()
        timesteps = pipe.scheduler.timesteps[-pipe.num_timesteps :]
        loop = AttachedLoop(pipe, self.conditions, record, timesteps, StockEncoders(pipe))
        with loop.running():
            self._loop = loop
            try:
                with make_bar() as bar:
                    yield bar
            finally:
                self._loop = None
        self._pasting = Replacement(
            pipe.image_processor, "postprocess", lambda *call: self._postprocess(loop.encoded.after_decode, *call)
        )

    def _postprocess(
        self, after_decode: Method, postprocess: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._finish()
        given = dict(zip(("image", "output_type", "do_denormalize"), args)) | kwargs
        return postprocess(**{**given, "image": after_decode(given["image"])})

    def _maybe_free_model_hooks(self, free: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # The last thing that every call does, whether or not it has decoded images.
        self._finish()
        return free(*args, **kwargs)
