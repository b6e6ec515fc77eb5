"""The processes that draw one image together: what each computes, and that all make the same call."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from .._compat import vram_budget_of
from .._compat.parallel import RANKS, split_settings


@dataclass(eq=False)
class Ranks:
    """The processes that draw one image together.

    Args:
        group (`torch.distributed.ProcessGroup`): All of them.
        device (`torch.device`): Where tensors are exchanged.
        branches (`torch.distributed.ProcessGroup`, *optional*):
            With the branches of guidance side by side, this process and the one with the other branch.
        timeout (`float`, *optional*): Seconds that one waits for the others, for messages.

    Attributes:
        largest (`tuple[int, ...]`, *optional*):
            Samples, image and text tokens that the call under way was found to have room for.
        has_budgets (`bool`): Whether any process had a VRAM budget when they last asked each other.
    """

    group: Any
    device: torch.device
    branches: Any = None
    timeout: float | None = None
    largest: tuple[int, ...] | None = field(default=None, init=False)
    has_budgets: bool = field(default=False, init=False)
    _busy: threading.Lock = field(default_factory=threading.Lock)

    @property
    def branch(self) -> str | None:
        """The branch of guidance that this process computes; `None` if it computes both."""
        return None if self.branches is None else ("cond", "uncond")[dist.get_rank(self.branches)]

    def exchange_branches(
        self, compute: Callable[[], torch.Tensor], like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute this process's velocity, give it to the process with the other branch, and take its velocity.

        Args:
            compute (`Callable[[], torch.Tensor]`): Computes the velocity of this process's branch.
            like (`torch.Tensor` of shape `(batch_size, length, channels)`): A tensor of the shape that it has.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: the velocities of the conditional and the unconditional branch.

        Raises:
            RuntimeError: if the other process fails; where this one fails, its own error.
        """
        try:
            velocity, error = compute(), None
        except Exception as raised:
            # The other process waits for an answer, whatever has happened here.
            velocity, error = torch.zeros_like(like), raised
        failed = velocity.new_full((1,), error is not None)
        sent = torch.cat([velocity.reshape(-1), failed])
        both = [torch.empty_like(sent) for _ in range(2)]
        dist.all_gather(both, sent, group=self.branches)
        if error is not None:
            raise error
        if any(part[-1] for part in both):
            raise RuntimeError(
                "The process that computes the other branch of guidance has failed: look at its messages. A condition "
                "may be refused in one branch only."
            )
        cond, uncond = (part[:-1].reshape(velocity.shape) for part in both)
        return cond, uncond

    @contextmanager
    def calling(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Check that all processes make the same call, and let them draw the same random numbers.

        Args:
            arguments (`Mapping[str, Any]`): The arguments of the call.

        Raises:
            RuntimeError: if another process does not arrive in time, or this one is in another call.
            ValueError: on all processes, if their arguments differ.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "Another thread of this process draws with the same transformer, which is shared with other "
                "processes: their messages would get mixed up. Wait for that call."
            )
        try:
            self._check_same(arguments)
            self._share_random_state()
            self.largest = None
            yield
        finally:
            self._busy.release()

    def _check_same(self, arguments: Mapping[str, Any]) -> None:
        names = sorted(arguments)
        # The names come first: another number of them would be another length.
        digests = [_number(_digest(names)), *(_number(_digest(arguments[name])) for name in names)]
        own = torch.tensor(digests[:1], device=self.device)
        self._compare(own, ["the names of the arguments"])
        self._compare(torch.tensor(digests[1:], device=self.device), [f"`{name}`" for name in names])

    def _compare(self, own: torch.Tensor, names: list[str]) -> None:
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(self.group))]
        try:
            dist.all_gather(every, own, group=self.group)
        except RuntimeError as error:
            waited = "" if self.timeout is None else f" within {self.timeout:g} seconds"
            raise RuntimeError(
                f"Not all {len(every)} processes have made this call{waited}. One of them may have stopped, or was "
                f"given other arguments that are refused: look at its messages. ({error})"
            ) from error
        # Against the first one's, so that all processes come to the same result.
        differs = (torch.stack(every) != every[0]).any(dim=0).tolist()
        if any(differs):
            found = [name for name, is_other in zip(names, differs) if is_other]
            raise ValueError(
                f"The processes that draw one image together must make the same call, but differ in "
                f"{', '.join(found)}. Give all of them the same arguments, and generators with the same seed."
            )

    def _share_random_state(self) -> None:
        state = torch.get_rng_state().to(self.device)
        source = dist.get_global_rank(self.group, 0)
        dist.broadcast(state, source, group=self.group)
        torch.set_rng_state(state.cpu())
        if self.device.type == "cuda":
            on_device = torch.cuda.get_rng_state(self.device).to(self.device)
            dist.broadcast(on_device, source, group=self.group)
            torch.cuda.set_rng_state(on_device.cpu(), self.device)


def ranks_of(transformer: torch.nn.Module) -> Ranks | None:
    """Return the processes that a transformer runs on together, or `None` if it runs on one.

    Args:
        transformer (`torch.nn.Module`): The transformer, after `pipe.enable_parallelism` or diffusers' own
            `transformer.enable_parallelism`.

    Returns:
        `Ranks` or `None`
    """
    known: Ranks | None = transformer.__dict__.get(RANKS)
    settings = split_settings(transformer)
    if known is not None or settings is None:
        return known
    set_ranks(transformer, Ranks(settings.group, device_of(transformer)))
    return ranks_of(transformer)


def device_of(transformer: torch.nn.Module) -> torch.device:
    """Return where a transformer runs; under a VRAM budget its weights may be in host memory."""
    budget = vram_budget_of({"transformer": transformer})
    device: torch.device = next(transformer.parameters()).device if budget is None else budget.device
    return device


def set_ranks(transformer: torch.nn.Module, ranks: Ranks | None) -> None:
    """Remember the processes that a transformer runs on together; `None` forgets them."""
    transformer.__dict__.pop(RANKS, None)
    if ranks is not None:
        # Not a part of the module.
        object.__setattr__(transformer, RANKS, ranks)


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def _digest(value: Any) -> bytes:
    """Return a digest of an argument by its content; modules and functions count by their class only."""
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _hash(str(tuple(value.shape)), str(value.dtype), content)
    if isinstance(value, np.ndarray):
        return _hash(str(value.shape), str(value.dtype), np.ascontiguousarray(value).tobytes())
    if isinstance(value, Image.Image):
        return _hash(value.mode, str(value.size), value.tobytes())
    if isinstance(value, Mapping):
        return _hash(*(_digest(part) for item in value.items() for part in item))
    if isinstance(value, (list, tuple)):
        return _hash(str(len(value)), *(_digest(part) for part in value))
    if is_dataclass(value) and not isinstance(value, type):
        return _hash(type(value).__name__, *(_digest(getattr(value, each.name)) for each in fields(value)))
    if value is None or isinstance(value, (str, bool, int, float)):
        return _hash(type(value).__name__, repr(value))
    return _hash(type(value).__name__)


def _hash(*parts: str | bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()
