"""Guards for diffusers' caches: refuse unsupported combinations, reset when inputs change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from .._compat import active_caches, hooks_without_branches, reset_caches
from .._compat.parallel import split_degree, split_settings
from .._sharing import in_loop
from ..sequence import AttentionRule, Contribution
from .foreign import empty_foreign_cache, foreign_cache


COUNT_RESIDUALS_TWICE = ("FirstBlockCacheConfig", "MagCacheConfig")
DECIDE_BY_TOKENS = ("FirstBlockCacheConfig", "SeaCacheConfig", "TeaCacheConfig")


class Step(Protocol):
    """The part of a [`DenoisingStep`] that a cache reads; that class belongs to a higher layer."""

    @property
    def index(self) -> int:
        """Number of the step."""

    @property
    def num_steps(self) -> int:
        """Number of steps of the loop."""

    @property
    def branch(self) -> str:
        """Branch of classifier-free guidance."""

    @property
    def latents(self) -> torch.Tensor:
        """Packed latents."""

    @property
    def prompt(self) -> Any:
        """The encoded prompt."""


def check_caches(transformer: torch.nn.Module, guided: bool = False) -> None:
    """Raise a `ValueError` if the transformer runs with a cache that does not support a call.

    Args:
        transformer (`torch.nn.Module`): The transformer.
        guided (`bool`, defaults to `False`): Whether there is an unconditional branch.
    """
    _check_foreign_cache(transformer, guided)
    check_cache_runs_split(transformer)
    caches = active_caches(transformer)
    if not all(getattr(hook, "is_guidance_distilled") for hook in caches.get("FasterCacheConfig", ())):
        raise ValueError(
            "The transformer runs with FasterCacheConfig(is_guidance_distilled=False), which takes half of each batch "
            "for the unconditional branch. Set `is_guidance_distilled=True`."
        )


def _check_foreign_cache(transformer: torch.nn.Module, guided: bool) -> None:
    cache = foreign_cache(transformer)
    if cache is None:
        return
    own = sorted(active_caches(transformer))
    if own:
        raise ValueError(
            f"The transformer runs with {cache.name} and with {own} at once. Take off all but one of them."
        )
    if guided and not cache.separates_branches:
        raise ValueError(
            f"The transformer runs with {cache.name}, which takes the branches of guidance for steps of one branch "
            f"and mixes them. {cache.remedy}, or call without `negative_prompt`."
        )


def check_cache_runs_split(transformer: torch.nn.Module) -> None:
    """Raise a `ValueError` if each device of context parallelism would decide on its own what a cache skips."""
    degree = split_degree(transformer)
    # TeaCache asks all devices, where it knows them.
    alone = set(DECIDE_BY_TOKENS) - ({"TeaCacheConfig"} if split_settings(transformer) is not None else set())
    found = sorted(active_caches(transformer).keys() & alone) if degree > 1 else []
    if found:
        raise ValueError(
            f"The transformer splits its tokens over {degree} devices (context parallelism) and runs with {found}, by "
            f"which each device decides for itself whether to skip a step, so that the others would wait for it in "
            f"vain. Call `transformer.disable_cache()`, or use `TaylorSeerCacheConfig`."
        )


def check_cache_allows_residuals(transformer: torch.nn.Module) -> None:
    """Raise a `ValueError` if the transformer runs with a cache that would count residuals twice.

    What such a cache reuses already contains the residuals, and the transformer still adds them.
    """
    caches = active_caches(transformer)
    for name in COUNT_RESIDUALS_TWICE:
        if name in caches:
            raise ValueError(
                f"The transformer runs with {name}, which would count the residuals of ControlNets and InfiniteYou "
                f"twice on the steps that it skips. Call `transformer.disable_cache()`, or use `TeaCacheConfig` or "
                f"`TaylorSeerCacheConfig`."
            )
    foreign = foreign_cache(transformer)
    if foreign is not None and not foreign.keeps_residuals:
        raise ValueError(
            f"The transformer runs with {foreign.name}, which joins the blocks and so drops the residuals of "
            f"ControlNets and InfiniteYou between them. Take it off (cache-dit: `cache_dit.disable_cache(pipe)`), and "
            f"use `TeaCacheConfig` or `TaylorSeerCacheConfig`."
        )


class CacheWatch:
    """Tells a transformer's caches where a loop is, and resets them at its start or when their content no longer fits.

    Caches that do not distinguish branches (PAB, FasterCache) get a state for each branch.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._caches = active_caches(transformer)
        empty_foreign_cache(transformer)
        if self._caches:
            self._reset()
        self._seen: dict[str, tuple[Any, list[AttentionRule]]] = {}
        self._shared = hooks_without_branches(transformer) if self._caches else []
        self._states: dict[str, list[Any]] = {}

    @contextmanager
    def running(self, step: Step, contributions: Sequence[Contribution]) -> Iterator[None]:
        """Compare a call of the transformer with the branch's last one, and set the cache context around it."""
        if self._caches:
            self._compare(step, contributions)
            self._use_states_of(step.branch)
        position = {"step_index": step.index, "num_inference_steps": step.num_steps}
        with in_loop(self), self._transformer.cache_context(step.branch, **position):
            yield

    def _reset(self) -> None:
        with in_loop(self):
            reset_caches(self._transformer)

    def _compare(self, step: Step, contributions: Sequence[Contribution]) -> None:
        layout = _layout(step, contributions)
        rules = [rule for part in contributions for rule in part.rules]
        known = self._seen.get(step.branch)
        if known is None or known[0] != layout or not _same(known[1], rules):
            _check_faster_cache_may_start(self._caches.get("FasterCacheConfig", ()))
            # The other branch's state is dropped, too: at most it is computed once more.
            if known is not None:
                self._reset()
                self._states.clear()
        self._seen[step.branch] = (layout, rules)

    def _use_states_of(self, branch: str) -> None:
        if branch not in self._states:
            self._states[branch] = [type(hook.state)() for hook in self._shared]
        for hook, state in zip(self._shared, self._states[branch]):
            hook.state = state


def _check_faster_cache_may_start(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        if hasattr(hook, "timestep_skip_range"):
            (low, high), timestep = hook.timestep_skip_range, float(hook.current_timestep_callback())
            if low < timestep < high:
                raise ValueError(
                    f"The transformer runs with FasterCacheConfig, which has nothing to reuse at the timestep "
                    f"{timestep:g}: a call starts there, or tokens come or go there, and "
                    f"`spatial_attention_timestep_skip_range` is ({low}, {high}). Set its upper end to {timestep:g}."
                )


def _same(old: Sequence[Any], new: Sequence[Any]) -> bool:
    return len(old) == len(new) and all(one is other for one, other in zip(old, new))


def _layout(step: Step, contributions: Sequence[Contribution]) -> tuple[Any, ...]:
    parts = [
        (
            [(group.name, group.length) for group in (*part.text, *part.reference)],
            [len(tensors) for tensors in (part.channels, part.block_residuals, part.single_block_residuals)],
            sorted(
                (name, len(value) if isinstance(value, tuple) else 1) for name, value in part.attention_kwargs.items()
            ),
        )
        for part in contributions
    ]
    return step.latents.shape, step.prompt.hidden_states.shape, parts
