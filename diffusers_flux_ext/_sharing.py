"""Concurrent calls over the same modules: in several threads, or one from another's callback."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ._compat import StateManager


_GUARD = "_flux_ext_forward_guard"
_LOCK = threading.RLock()


@dataclass(eq=False)
class Call:
    """One running call of a pipeline.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        modules (`Mapping[str, torch.nn.Module]`): What it runs, by the names in error messages.
        thread (`threading.Thread`): The thread that it runs in.
    """

    pipe: Any
    modules: Mapping[str, torch.nn.Module]
    thread: threading.Thread = field(default_factory=threading.current_thread)


_RUNNING: list[Call] = []


@contextmanager
def starting_calls() -> Iterator[list[Call]]:
    """Hold the list of running calls; none starts or ends inside this context."""
    with _LOCK:
        yield _RUNNING


class _Loops(threading.local):
    def __init__(self) -> None:
        self.inner: list[Any] = []


_LOOPS = _Loops()


def loop_key() -> Any:
    """Return the key that tells loops apart: the object given to [`in_loop`], or else the thread."""
    return _LOOPS.inner[-1] if _LOOPS.inner else threading.current_thread()


@contextmanager
def in_loop(key: Any) -> Iterator[None]:
    """Give one loop its own states on modules inside this context, wherever else the modules run.

    Args:
        key (`Any`): An object that identifies the loop and lives as long.
    """
    _LOOPS.inner.append(key)
    try:
        yield
    finally:
        _LOOPS.inner.pop()


class LoopStateManager(StateManager):
    """diffusers' `StateManager` with a separate context and separate states for each denoising loop.

    diffusers keeps one context and one state per branch on a module, whoever calls it.

    Args:
        state_cls (`type`): Class of the states.
    """

    def __init__(self, state_cls: Any) -> None:
        self._contexts: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._states: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
        super().__init__(state_cls)

    @property
    def _context(self) -> Any:
        return self._contexts.get(loop_key())

    @_context.setter
    def _context(self, context: Any) -> None:
        self._contexts[loop_key()] = context

    @property
    def _state_cache(self) -> dict[str, Any]:
        return self._states.setdefault(loop_key(), {})

    @_state_cache.setter
    def _state_cache(self, states: dict[str, Any]) -> None:
        self._states[loop_key()] = states


class ForwardLock:
    """Lets one thread at a time run a forward pass; reentrant, and released once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._owner: threading.Thread | None = None

    def __deepcopy__(self, memo: Any) -> ForwardLock:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def acquire(self) -> None:
        """Wait until no other thread holds the lock."""
        me = threading.current_thread()
        with self._condition:
            while self._owner is not None and self._owner is not me and self._owner.is_alive():
                # Check now and then whether the owner has died in its forward pass.
                self._condition.wait(timeout=1.0)
            self._owner = me

    def release(self) -> None:
        """Release the lock; nothing happens in a thread that does not hold it."""
        with self._condition:
            if self._owner is threading.current_thread():
                self._owner = None
                self._condition.notify()


class _ForwardGuard:
    """The lock of a module, and the hooks that take it around each forward pass while anything needs them."""

    def __init__(self) -> None:
        self.lock = ForwardLock()
        self.users = 0
        self.handles: list[Any] = []

    def before(self, module: torch.nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.lock.acquire()

    def after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.lock.release()


def _guard_of(module: Any) -> _ForwardGuard:
    module = getattr(module, "_orig_mod", module)
    with _LOCK:
        if _GUARD not in module.__dict__:
            object.__setattr__(module, _GUARD, _ForwardGuard())
        return module.__dict__[_GUARD]


def guard_forward(module: torch.nn.Module) -> None:
    """Let one thread at a time run a module, for state that lasts for one forward pass.

    Hooks of a forward pass that use such state are registered afterwards, or with `prepend=True` if they run after it.

    Args:
        module (`torch.nn.Module`): The module; [`unguard_forward`] undoes one call.
    """
    guard = _guard_of(module)
    guard.users += 1
    if guard.users == 1:
        guard.handles = [
            module.register_forward_pre_hook(guard.before, prepend=True),
            module.register_forward_hook(guard.after, always_call=True),
        ]


def unguard_forward(module: torch.nn.Module) -> None:
    """Undo one call of [`guard_forward`]."""
    guard = _guard_of(module)
    guard.users -= 1
    if guard.users == 0:
        for handle in guard.handles:
            handle.remove()
        guard.handles = []
        # This may run inside a forward pass whose last hook is gone now.
        guard.lock.release()


@contextmanager
def one_thread(*parts: Any) -> Iterator[None]:
    """Keep other threads out of these parts inside this context; they wait.

    Args:
        parts (`Any`): Modules, tokenizers and the like, in the same order wherever several are taken; or `None`.
    """
    locks = [_guard_of(part).lock for part in parts if part is not None]
    with ExitStack() as stack:
        for lock in locks:
            lock.acquire()
            stack.callback(lock.release)
        yield


def one_forward(module: torch.nn.Module) -> AbstractContextManager[None]:
    """Keep other threads out of a module whose adapters or hooks hold state during a forward pass.

    Args:
        module (`torch.nn.Module`):
            The module. Any number of threads may run one without adapters and without [`guard_forward`].
    """
    module = getattr(module, "_orig_mod", module)
    return one_thread(module if getattr(module, "peft_config", None) or _guard_of(module).users else None)
