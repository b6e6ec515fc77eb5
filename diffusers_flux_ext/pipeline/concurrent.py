"""Concurrent calls: what each needs for itself, and what prevents a call from starting beside another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar

import torch

from .._compat import active_caches, state_hooks
from .._sharing import Call, starting_calls
from ..caches.foreign import foreign_cache
from ..caches.tea_cache import HOOK
from ..parallel.budgets import share_budgets
from ..parallel.ranks import ranks_of


CallT = TypeVar("CallT", bound=Callable[..., Any])


def may_run_at_once(call: CallT) -> CallT:
    """Decorate a pipeline's `__call__` so that it may run while another call is running.

    The pipeline object and its scheduler hold the state of a call, so the second of two concurrent calls gets a
    shallow copy of the pipeline with a scheduler of its own. The modules are the same ones.

    Args:
        call (`Callable`): The `__call__`.

    Returns:
        `Callable`: it raises a `RuntimeError` before anything else if the modules cannot serve two calls at once.
    """

    @wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _entered(self, kwargs.get("conditions")) as pipe, _with_other_processes(pipe, args, kwargs):
            return call(pipe, *args, **kwargs)

    return run  # type: ignore[return-value]


@contextmanager
def _entered(pipe: Any, conditions: Any) -> Iterator[Any]:
    with starting_calls() as calls:
        if any(_shares_scheduler(pipe, other) for other in calls):
            pipe = _with_own_scheduler(pipe)
        call = _listed(pipe, conditions, calls)
    with _ending(call):
        yield pipe


@contextmanager
def _with_other_processes(pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    ranks = ranks_of(pipe.transformer)
    if ranks is None:
        yield
        return
    positional = {f"argument {index + 1}": value for index, value in enumerate(args)}
    with ranks.calling({**positional, **kwargs}):
        # Here all of them meet; later one branch of guidance may have been refused.
        share_budgets(ranks, pipe.transformer)
        yield


@contextmanager
def loop_of_stock_pipeline(pipe: Any, conditions: Any) -> Iterator[None]:
    """Count the loop of a pipeline of diffusers, which cannot be copied, among the running calls.

    Args:
        pipe (`DiffusionPipeline`): The pipeline; its scheduler has been set.
        conditions (`Sequence[FluxCondition]`): Its conditions.

    Raises:
        RuntimeError: if a running call uses the same scheduler, or modules that serve one call at a time.
    """
    with starting_calls() as calls:
        for other in calls:
            if _shares_scheduler(pipe, other):
                raise RuntimeError(
                    f"The {type(pipe.scheduler).__name__} of this {type(pipe).__name__} is in use by a running call "
                    f"of {type(other.pipe).__name__}. Give the pipeline a scheduler of its own: `pipe.scheduler = "
                    f"{type(pipe.scheduler).__name__}.from_config(pipe.scheduler.config)`; one pipeline of diffusers "
                    f"makes one call at a time."
                )
        call = _listed(pipe, conditions, calls)
    with _ending(call):
        yield


def _shares_scheduler(pipe: Any, other: Call) -> bool:
    return other.pipe is pipe or other.pipe.scheduler is pipe.scheduler


def _listed(pipe: Any, conditions: Any, calls: list[Call]) -> Call:
    call = Call(pipe, _modules(pipe, conditions))
    for other in calls:
        _check_modules_serve_both(call, other)
    calls.append(call)
    return call


@contextmanager
def _ending(call: Call) -> Iterator[None]:
    try:
        yield
    finally:
        with starting_calls() as calls:
            calls.remove(call)


def _with_own_scheduler(pipe: Any) -> Any:
    scheduler = pipe.scheduler
    replaced = [name for name, value in vars(scheduler).items() if callable(value) and hasattr(type(scheduler), name)]
    if replaced:
        raise RuntimeError(
            f"The scheduler of this {type(pipe).__name__} is in use by a running call, and {replaced} of it were "
            f"replaced, so that it cannot be copied. Give the pipeline a scheduler of its own: `pipe.scheduler = "
            f"{type(scheduler).__name__}.from_config(pipe.scheduler.config)`."
        )
    twin = copy.copy(pipe)
    # First a shallow copy, since the other call may be changing it.
    twin.scheduler = copy.deepcopy(copy.copy(scheduler))
    return twin


def _modules(pipe: Any, conditions: Any) -> dict[str, torch.nn.Module]:
    """Return the modules of a pipeline and of possible conditions, which have not been checked yet."""
    parts = dict(pipe.components)
    for condition in conditions if isinstance(conditions, Sequence) else [conditions]:
        if is_dataclass(condition):
            names = [field.name for field in fields(condition)]
            parts |= {f"{type(condition).__name__}.{name}": getattr(condition, name, None) for name in names}
    return {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}


def _check_modules_serve_both(call: Call, other: Call) -> None:
    theirs = {id(module) for module in other.modules.values()}
    for name, module in call.modules.items():
        if id(module) in theirs:
            _check_caches(name, module, other)
            if other.thread is not call.thread:
                _check_hooks(name, module, other)


def _check_caches(name: str, module: torch.nn.Module, other: Call) -> None:
    foreign = foreign_cache(module)
    found = {*active_caches(module), *([foreign.name] if foreign is not None else [])} - {"TeaCacheConfig"}
    if found:
        raise RuntimeError(
            f"{_in_use(name, other)} and runs with {sorted(found)}, which remembers the steps of one call at a time. "
            f"Wait for that call, take the cache off, or use `apply_tea_cache`, which keeps calls apart."
        )


def _check_hooks(name: str, module: torch.nn.Module, other: Call) -> None:
    found = state_hooks(module) - {HOOK}
    if found:
        raise RuntimeError(
            f"{_in_use(name, other)} and has hooks ({sorted(found)}) that move or change its weights for one thread "
            f"at a time. Wait for that call, for example with a `threading.Lock` around the calls."
        )


def _in_use(name: str, other: Call) -> str:
    return f"`{name}` is in use by a call of {type(other.pipe).__name__} in the thread {other.thread.name!r},"


def check_schedule(scheduler: Any, timesteps: torch.Tensor) -> None:
    """Raise a `RuntimeError` if a running call's scheduler has been set for another call.

    Args:
        scheduler (`SchedulerMixin`): The scheduler.
        timesteps (`torch.Tensor`): Its timesteps when the loop began; they are compared by identity.
    """
    if scheduler.timesteps is not timesteps:
        raise RuntimeError(
            f"The {type(scheduler).__name__} was set for another call while this one runs: a pipeline of diffusers "
            f"that shares it, in another thread or in the callback. Give one of them a scheduler of its own: "
            f"`pipe.scheduler = {type(scheduler).__name__}.from_config(pipe.scheduler.config)`."
        )
