"""The actors that draw, and what they answer."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..engine import Work
from .parcel import Parcel


@dataclass(eq=False)
class Seat:
    """An actor, and what it does.

    Attributes:
        actor (`ActorHandle`): The actor.
        work (`Work`, *optional*): What it draws.
        since (`float`): When it began with that, in seconds of the monotonic clock.
        node (`str`, *optional*): The identifier of its node, once it has started.
        place (`str`): The same for people.
    """

    actor: Any
    work: Work | None = None
    since: float = 0.0
    node: str | None = None
    place: str = "a worker that has not started"


class Crew:
    """Actors that draw one job at a time each.

    Args:
        make_actor (`Callable`): Starts an actor, a [`~worker.Worker`].
        kill (`Callable`): Ends one.
        count (`int`): How many there are.
    """

    def __init__(self, make_actor: Callable[[], Any], kill: Callable[[Any], None], count: int) -> None:
        self._make, self._kill = make_actor, kill
        self._answers: queue.SimpleQueue[tuple[Seat, Future[Any]]] = queue.SimpleQueue()
        self.seats: set[Seat] = set()
        for _ in range(count):
            self.add()

    @property
    def busy(self) -> list[Seat]:
        """The seats of actors that draw."""
        return [seat for seat in self.seats if seat.work is not None]

    def add(self) -> None:
        """Start one more actor; its first answer says where it is."""
        seat = Seat(self._make())
        self.seats.add(seat)
        self._ask(seat, seat.actor.about.remote())

    def give(self, seat: Seat, work: Work, parcel: Parcel) -> None:
        """Let an actor draw a job.

        Args:
            seat (`Seat`): The actor's.
            work (`Work`): The job.
            parcel (`Parcel`): The same for the actor.
        """
        seat.work, seat.since = work, time.monotonic()
        self._ask(seat, seat.actor.draw.remote(parcel))

    def _ask(self, seat: Seat, reference: Any) -> None:
        # A callback for each answer: looking at all references again and again takes time by their number.
        reference.future().add_done_callback(lambda future: self._answers.put((seat, future)))

    def answer(self, seconds: float) -> tuple[Seat, Future[Any]] | None:
        """Return the next answer of an actor that is still one of them; `None` if none came in time.

        Args:
            seconds (`float`): How long to wait.
        """
        with suppress(queue.Empty):
            seat, future = self._answers.get(timeout=seconds) if seconds else self._answers.get_nowait()
            return (seat, future) if seat in self.seats else None
        return None

    def dismiss(self, seat: Seat) -> None:
        """End an actor; what it may still answer is not heard.

        Args:
            seat (`Seat`): The actor's.
        """
        self.seats.discard(seat)
        self._kill(seat.actor)

    def dismiss_all(self) -> None:
        """End all actors."""
        for seat in list(self.seats):
            self.dismiss(seat)
