"""Attaching conditions to a pipeline of diffusers, and detaching them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from diffusers import DiffusionPipeline

from ...condition import FluxCondition, check_conditions
from .encoders import StockEncoders
from .loop import AttachedLoop
from .record import CallRecord
from .replacement import Replacement
from .stock import check_claims, check_pipeline


_ATTACHED = "_flux_ext_attached"
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
        self._record: CallRecord | None = None
        self._loop: AttachedLoop | None = None
        self._pasting: Replacement | None = None
        self._replaced = [Replacement(pipe, name, getattr(self, f"_{name}")) for name in _METHODS]

    def __enter__(self) -> AttachedConditions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(type(condition).__name__ for condition in self.conditions)})"

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
        if pipe is not None and vars(pipe).get(_ATTACHED) is self:
            delattr(pipe, _ATTACHED)

    def _finish(self) -> None:
        self._record = None
        if self._pasting is not None:
            self._pasting.restore()
            self._pasting = None

    def _check_inputs(self, check: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._loop is not None:
            raise RuntimeError(
                f"{type(self._pipe()).__name__} is called while it draws, in another thread or in its callback. "
                f"One pipeline of diffusers makes one call at a time: wait, or give each caller a pipeline and a "
                f"scheduler of its own and attach the conditions to both."
            )
        self._finish()
        self._record = CallRecord()
        return check(*args, **kwargs)

    def _encode_prompt(self, encode: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._record is not None and self._loop is None:
            self._record.note_prompt(self._pipe(), args, kwargs)
        return encode(*args, **kwargs)

    def _prepare_latents(self, prepare: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._record is None or self._loop is not None:
            return prepare(*args, **kwargs)
        return self._record.prepare_latents(self._pipe(), prepare, args, kwargs)

    def _progress_bar(self, make: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._record is None or self._record.latents is None or self._loop is not None:
            return make(*args, **kwargs)
        return self._running(self._record, lambda: make(*args, **kwargs))

    @contextmanager
    def _running(self, record: CallRecord, make_bar: Callable[[], Any]) -> Iterator[Any]:
        """Run the conditions in the loop, which is inside the context of the progress bar in every pipeline."""
        pipe: Any = self._pipe()
        timesteps = pipe.scheduler.timesteps[-pipe.num_timesteps :]
        loop = AttachedLoop(pipe, self.conditions, record, timesteps, StockEncoders(pipe))
        self._record, self._loop = None, loop
        try:
            with loop.running(), make_bar() as bar:
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


def attach_conditions(
    pipe: DiffusionPipeline, conditions: FluxCondition | Sequence[FluxCondition]
) -> AttachedConditions:
    """Attach conditions to a FLUX pipeline of diffusers; its own calls then run them.

    The pipeline stays what it is: its class, its components, the signature of its call and what it saves. Callbacks,
    LoRAs, offloading, compiled blocks and schedulers keep working, and other pipelines that share the transformer are
    not touched. With `FluxPipeline`, `FluxImg2ImgPipeline` and `FluxKontextPipeline` the images are those of
    [`FluxConditionedPipeline`] with the same conditions.

    ```py
    with attach_conditions(pipe, [EntityRegions(["a red cat"], [(0.0, 0.0, 0.5, 1.0)])]):
        image = pipe("a garden").images[0]
    ```

    Args:
        pipe (`DiffusionPipeline`):
            One of diffusers' twelve pipelines that call a FLUX.1 transformer, or a subclass with the same `__call__`.
        conditions (`FluxCondition` or a list of them):
            The conditions; they are encoded anew in each call.

    Returns:
        `AttachedConditions`: a context manager; without `with`, its `detach()` or [`detach_conditions`] takes the
        conditions off.

    Raises:
        TypeError: if `pipe` is another pipeline, or `conditions` holds something else.
        ValueError: if the pipeline has conditions already, or decides itself what a condition decides. What only a
            call shows (channels, rules of guidance, references of both) is refused there, before its first step.
    """
    check_pipeline(pipe)
    given = check_conditions(conditions)
    present = attached_conditions(pipe)
    if _ATTACHED in vars(pipe):
        raise ValueError(
            f"{type(pipe).__name__} has conditions already: {[type(each).__name__ for each in present]}. Give all of "
            f"them in one list, after `detach_conditions(pipe)`."
        )
    check_claims(pipe, given)
    attached = AttachedConditions(pipe, given)
    setattr(pipe, _ATTACHED, attached)
    return attached


def detach_conditions(pipe: DiffusionPipeline) -> None:
    """Take all attached conditions off a pipeline, which then computes what it computed before, bit for bit.

    Args:
        pipe (`DiffusionPipeline`): The pipeline; one without attached conditions is left alone.

    Raises:
        TypeError: if `pipe` is not a FLUX pipeline of diffusers.
        RuntimeError: if the pipeline is in its loop.
    """
    check_pipeline(pipe)
    attached = vars(pipe).get(_ATTACHED)
    if attached is not None:
        attached.detach()


def attached_conditions(pipe: DiffusionPipeline) -> list[FluxCondition]:
    """Return the conditions that are attached to a pipeline.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.

    Returns:
        `list[FluxCondition]`: empty without any.

    Raises:
        TypeError: if `pipe` is not a FLUX pipeline of diffusers.
    """
    check_pipeline(pipe)
    attached = vars(pipe).get(_ATTACHED)
    return [] if attached is None else list(attached.conditions)
