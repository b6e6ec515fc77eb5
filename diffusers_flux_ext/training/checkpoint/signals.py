"""Stopping a run at the end of a step when the machine is about to be taken away."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from diffusers.utils import logging


logger = logging.get_logger(__name__)

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT")


class StopRequest:
    """Turns the first SIGTERM, SIGUSR1 or SIGINT into a request to stop; the second one acts at once.

    A context manager: the former handlers are back after it. Outside of the main thread, where Python has no signals,
    it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._former: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is not None:
            raise KeyboardInterrupt(f"Stopped at once by a second signal ({name} after {self.received}).")
        self.received = name
        logger.warning(f"Got {name}: the run stops after this step and saves. A second signal stops it at once.")
