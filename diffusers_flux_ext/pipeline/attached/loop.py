"""Conditions in a loop of diffusers: what its calls of the transformer and of the scheduler become."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from ..._compat import offload_all_but
from ...attention.processor import regional_attention
from ...caches.rules import check_caches
from ...condition import FluxCondition
from ...denoise import DenoisingStep, PreparedCall, PromptEmbeds
from ...encoded import EncodedConditions
from ...sequence import Contribution
from ..calls import LoopCalls, next_timestep
from ..concurrent import check_schedule, loop_of_stock_pipeline
from .encoders import StockEncoders
from .given import check_guidance, check_runs_beside, split_call
from .record import CallRecord
from .replacement import Replacement


BRANCHES: tuple[Literal["cond", "uncond"], ...] = ("cond", "uncond")


class AttachedLoop:
    """One loop of a pipeline of diffusers with conditions, which are encoded here.

    Args:
        pipe (`DiffusionPipeline` or `ModularPipeline`): The pipeline, about to begin its loop.
        conditions (`Sequence[FluxCondition]`): The conditions.
        record (`CallRecord`): What the call has shown so far.
        timesteps (`torch.Tensor` of shape `(steps,)`): The timesteps of the loop.
        encoders (`StockEncoders`): What conditions may ask of the pipeline.
    """

    def __init__(
        self,
        pipe: Any,
        conditions: Sequence[FluxCondition],
        record: CallRecord,
        timesteps: torch.Tensor,
        encoders: StockEncoders,
    ) -> None:
        self._pipe, self._record, self._thread = pipe, record, threading.current_thread()
        check_caches(pipe.transformer, record.is_guided)
        self.canvas = record.canvas(pipe)
        self.encoded = EncodedConditions(encoders, conditions, self.canvas)
        offload_all_but(pipe, ("transformer", "controlnet"))
        self._calls = LoopCalls(pipe.transformer, self.encoded)
        self._schedule, self._timesteps = pipe.scheduler.timesteps, timesteps
        self._index, self._branches = 0, iter(BRANCHES[: record.num_branches])
        self._step: DenoisingStep | None = None
        self._img_ids: torch.Tensor | None = None
        self._open = ExitStack()
        self._call: PreparedCall | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the conditions in the calls that the pipeline makes inside this context."""
        transformer, scheduler = self._pipe.transformer, self._pipe.scheduler
        with ExitStack() as stack:
            stack.enter_context(loop_of_stock_pipeline(self._pipe, self.encoded.conditions))
            stack.enter_context(regional_attention(transformer))
            self._intercept(transformer, stack)
            stack.callback(Replacement(scheduler, "step", self._after_step).restore)
            yield

    def _intercept(self, transformer: torch.nn.Module, stack: ExitStack) -> None:
        if getattr(transformer, "_compiled_call_impl", None) is not None:
            # `transformer.compile()` compiles the hooks of a module with it.
            stack.callback(Replacement(transformer, "_compiled_call_impl", self._around).restore)
            return
        # The first hook before and the last one after, so that all others see what is run.
        before = transformer.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        stack.callback(before.remove)
        stack.callback(transformer.register_forward_hook(self._after, always_call=True).remove)

    def _around(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed, output = self._before(self._pipe.transformer, args, kwargs), None
        if changed is None:
            return call(*args, **kwargs)
        try:
            output = call(**changed[1])
        finally:
            finished = self._after(self._pipe.transformer, (), output)
        return finished

    def _is_ours(self, kwargs: dict[str, Any]) -> bool:
        # Callbacks and other threads may run the transformer meanwhile; one call has the same positions throughout.
        if threading.current_thread() is not self._thread:
            return False
        if self._img_ids is None:
            self._img_ids = kwargs.get("img_ids")
        return kwargs.get("img_ids") is self._img_ids

    def _before(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if not self._is_ours(kwargs):
            return None
        step, given = self._read(kwargs)
        if self._index == 0 and self._record.is_guided:
            check_guidance(self._pipe, self.encoded.conditions, step, self._timesteps)
        step, contributions = self._calls.contributions(step, given)
        check_runs_beside(self._pipe, self.encoded.conditions, contributions)
        self._call = self._open.enter_context(self._calls.prepared(step, contributions))
        return (), self._call.inputs

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> tuple[torch.Tensor] | None:
        if self._call is None or threading.current_thread() is not self._thread:
            return None
        call, self._call = self._call, None
        self._open.close()
        # Nothing was returned if an error was raised.
        return None if output is None else (call.finish(output[0]),)

    def _read(self, kwargs: dict[str, Any]) -> tuple[DenoisingStep, Contribution]:
        branch = next(self._branches, None)
        if branch is None:
            raise RuntimeError(
                f"{type(self._pipe).__name__} calls its transformer more than {self._record.num_branches} times in "
                f"the step {self._index}, which is as often as it has encoded prompts, so conditions cannot tell what "
                f"the call is for. Detach them."
            )
        latents, ids, given = split_call(kwargs, self.canvas.num_tokens, self._record.latent_width)
        step = DenoisingStep(
            index=self._index,
            num_steps=len(self._timesteps),
            branch=branch,
            timestep=kwargs["timestep"].expand(latents.shape[0]),
            latents=latents,
            latent_ids=ids,
            prompt=PromptEmbeds(kwargs["encoder_hidden_states"], kwargs["pooled_projections"], kwargs["txt_ids"]),
            guidance=kwargs.get("guidance"),
            next_timestep=next_timestep(self._timesteps, self._index, latents.shape[0]),
        )
        if self._step is None:
            self._step = step
        return step, given

    def _after_step(self, advance: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_schedule(self._pipe.scheduler, self._schedule)
        if self._step is None:
            raise RuntimeError(
                f"{type(self._pipe).__name__} made the step {self._index} without a call of its transformer that the "
                f"attached conditions have seen: something calls the transformer past its hooks. Undo that, or detach "
                f"them."
            )
        latents, *rest = advance(*args, **kwargs)
        latents = self.encoded.after_step(self._step, latents)
        self._index, self._branches, self._step = self._index + 1, iter(BRANCHES[: self._record.num_branches]), None
        return latents, *rest
