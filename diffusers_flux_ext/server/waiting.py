"""The queue: limited, and fair between clients."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable


class QueueFull(Exception):
    """As many jobs wait as may."""


class FairQueue:
    """Ids of jobs that wait, for each model; clients take turns, and each client's jobs stay in their order.

    Args:
        limit (`int`): Jobs that may wait, over all models.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._turns: dict[str, OrderedDict[str, deque[str]]] = {}
        self._places: dict[str, tuple[str, str]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._places)

    def put(self, job: str, model: str, client: str, announce: Callable[[int], None], beyond: bool = False) -> None:
        """Let a job wait.

        Args:
            job (`str`): Its id.
            model (`str`): The model that draws it.
            client (`str`): Whose it is.
            announce (`Callable[[int], None]`): Told the job's position before anybody can take it.
            beyond (`bool`, *optional*, defaults to `False`): Whether it may exceed the limit, as after a restart.

        Raises:
            QueueFull: if as many wait as may.
        """
        with self._changed:
            if len(self._places) >= self.limit and not beyond:
                raise QueueFull
            self._turns.setdefault(model, OrderedDict()).setdefault(client, deque()).append(job)
            self._places[job] = (model, client)
            announce(self.position(job) or 0)
            self._changed.notify_all()

    def take(self, model: str) -> str | None:
        """Return the next job of a model, and wait for one; `None` after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._turns.get(model))
            if self._closed:
                return None
            client, jobs = next(iter(self._turns[model].items()))
            return self._leave(model, client, jobs[0], next_turn=True)

    def take_alike(self, model: str, fits: Callable[[str], bool]) -> str | None:
        """Return the next job of a model if it fits, without waiting; nobody is passed over."""
        with self._changed:
            clients = self._turns.get(model)
            if self._closed or not clients:
                return None
            client, jobs = next(iter(clients.items()))
            return self._leave(model, client, jobs[0], next_turn=True) if fits(jobs[0]) else None

    def remove(self, job: str) -> bool:
        """Take a job out that is not wanted any more; return whether it waited."""
        with self._changed:
            if job not in self._places:
                return False
            model, client = self._places[job]
            self._leave(model, client, job, next_turn=False)
            return True

    def _leave(self, model: str, client: str, job: str, next_turn: bool) -> str:
        clients = self._turns[model]
        clients[client].remove(job)
        del self._places[job]
        if not clients[client]:
            del clients[client]
        elif next_turn:
            clients.move_to_end(client)
        return job

    def position(self, job: str) -> int | None:
        """Return how many jobs are drawn before one, or `None` if it does not wait."""
        with self._changed:
            if job not in self._places:
                return None
            model, own = self._places[job]
            clients = self._turns[model]
            index, turn = clients[own].index(job), list(clients).index(own)
            # A client that is served earlier in a round has one more job before it.
            others = (
                min(len(jobs), index + (place < turn))
                for place, (client, jobs) in enumerate(clients.items())
                if client != own
            )
            return index + sum(others)

    def close(self) -> None:
        """Let nothing out any more; those who wait for a job get none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
