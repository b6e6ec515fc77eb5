"""What happens to a job, told to those who listen."""

from __future__ import annotations

import asyncio
import re
import secrets
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any


LAST = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Event:
    """One event: its id, its name and its data."""

    id: str
    name: str
    data: dict[str, Any]


class EventLog:
    """The events of one job, from one thread to any number of listeners.

    Only the newest preview is kept, so a log stays small.
    """

    def __init__(self) -> None:
        # After a restart the job begins anew, which listeners of the former log have to be told.
        self._run = secrets.token_hex(4)
        self._count = 0
        self._events: list[Event] = []
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def add(self, name: str, **data: Any) -> None:
        """Tell an event."""
        with self._lock:
            if name == "preview":
                self._events = [event for event in self._events if event.name != name]
            self._count += 1
            self._events.append(Event(f"{self._run}-{self._count}", name, data))
            self._closed = self._closed or name in LAST
            self._wake()

    def close(self) -> None:
        """End all listening without another event, as when the server stops."""
        with self._lock:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        for loop, woken in self._listeners:
            # The loop of a listener may have ended before its connection was given up.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(woken.set)

    def _after(self, last: str | None) -> tuple[list[Event], bool]:
        with self._lock:
            run, _, count = (last or "").partition("-")
            is_own = run == self._run and re.fullmatch("[0-9]{1,9}", count)
            seen = int(count) if is_own else 0
            return [event for event in self._events if _number(event) > seen], self._closed

    async def listen(self, last: str | None = None, pause: float = 15.0) -> AsyncIterator[Event | None]:
        """Yield events as they come, until the last one.

        Args:
            last (`str`, *optional*): The id of the last event that the listener knows.
            pause (`float`, *optional*, defaults to 15): Seconds without an event after which `None` is yielded.

        Yields:
            `Event` or `None`
        """
        woken = asyncio.Event()
        listener = (asyncio.get_running_loop(), woken)
        with self._lock:
            self._listeners.add(listener)
        try:
            while True:
                woken.clear()
                events, closed = self._after(last)
                for event in events:
                    last = event.id
                    yield event
                if closed:
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), pause)
                    continue
                yield None
        finally:
            with self._lock:
                self._listeners.discard(listener)


def _number(event: Event) -> int:
    return int(event.id.partition("-")[2])
