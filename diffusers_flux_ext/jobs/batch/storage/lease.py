"""One process at a time writes a folder on a remote store."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from typing import Any, Protocol


logger = logging.getLogger(__name__)
LEASE = ".lease.json"
SETTLE = 1.0


class LeaseStore(Protocol):
    """What a lease needs of a store; [`~remote.RemoteStore`] uses this file."""

    def where(self, name: str) -> str:
        """Return where a file is."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it is there."""

    def read_now(self, name: str) -> bytes | None:
        """Return the content of a file."""

    def write_now(self, name: str, data: bytes) -> None:
        """Write a file."""

    def remove_now(self, name: str) -> None:
        """Remove a file."""

    def forget(self) -> None:
        """List the folder anew."""


class FolderLease:
    """Claims of all jobs of a folder at once.

    Few stores can create a file only if it is missing, and fewer can replace it only if it is unchanged, so that
    claims by job would need a guarantee that is not there. The first claim waits until no other process writes the
    folder. A process that is gone is recognised by its file, which has not changed for `lease` seconds; clocks need
    not agree. Where a store cannot create exclusively, two processes that begin within the same second see each other
    after `settle` seconds, and one of them waits. A process that was taken for gone, and was not, is told with its
    next claim.

    Args:
        store (`LeaseStore`): The folder.
        lease (`float`): Seconds; the same for all processes.
        pause (`float`): Seconds between looks at another process's file.
        settle (`float`, *optional*, defaults to 1): Seconds until what was written is read again.
    """

    def __init__(self, store: LeaseStore, lease: float, pause: float, settle: float = SETTLE) -> None:
        self.store, self.lease, self.pause, self.settle = store, lease, pause, settle
        self._token: str | None = None
        self._names: set[str] = set()
        self._lost = False
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self, name: str) -> bool:
        """Claim a job; wait as long as another process writes the folder.

        Args:
            name (`str`): The job's name.

        Returns:
            `bool`: `False` for a job that this process has claimed.

        Raises:
            OSError: if the store cannot be written, or another process has taken the folder over.
        """
        if self._lost:
            raise OSError(
                f"`{self.store.where(LEASE)}` names another process, which took this one for gone and writes the "
                "folder now. Start the command again: it waits for the other one and draws what is left."
            )
        if self._token is None:
            self._acquire()
        if name in self._names:
            return False
        self._names.add(name)
        return True

    def release(self, name: str) -> None:
        """Give a claim up; the folder stays with this process."""
        self._names.discard(name)

    def taken(self) -> set[str]:
        """Return nothing: other processes wait."""
        return set()

    def release_all(self) -> None:
        """Give the folder up."""
        self._names.clear()
        if self._token is None:
            return
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        if self._is_ours():
            self.store.remove_now(LEASE)
        self._token = None

    def _acquire(self) -> None:
        token, watched, since = secrets.token_hex(8), None, time.monotonic()
        while True:
            content = self.store.read_now(LEASE)
            if content is None:
                if self._created(token):
                    break
            elif content != watched:
                if watched is None:
                    logger.warning("%s is written by %s; waiting for it", self.store.where(""), _named(content))
                watched, since = content, time.monotonic()
            elif _is_dead(content) or time.monotonic() - since >= self.lease:
                self.store.remove_now(LEASE)
                continue
            time.sleep(self.pause)
        self._stop.clear()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="flux-ext-lease")
        self._heart.start()
        # The other process may have drawn much.
        self.store.forget()

    def _created(self, token: str) -> bool:
        if not self.store.create(LEASE, _content(token, 0)):
            return False
        self._token = token
        time.sleep(self.settle)
        if self._is_ours():
            return True
        self._token = None
        return False

    def _is_ours(self) -> bool:
        return _read(self.store.read_now(LEASE)).get("token") == self._token

    def _beat(self) -> None:
        count, token = 0, self._token or ""
        while not self._stop.wait(self.lease / 3):
            try:
                if not self._is_ours():
                    self._lost = True
                    return
                count += 1
                self.store.write_now(LEASE, _content(token, count))
            except OSError as error:
                # A store that is back before the lease ends has done no harm.
                logger.warning("%s", error)


def _content(token: str, count: int) -> bytes:
    owner = {"token": token, "beat": count, "host": socket.gethostname(), "process": os.getpid()}
    return json.dumps(owner).encode()


def _read(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(content: bytes) -> str:
    owner = _read(content)
    return f"process {owner.get('process')} of {owner.get('host')}"


def _is_dead(content: bytes) -> bool:
    """Whether the process that wrote a lease ran on this machine and has ended."""
    owner = _read(content)
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
