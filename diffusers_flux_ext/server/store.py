"""The state folder: records and images, which outlive the process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.writing import written_at_once
from .limits import Limits
from .records import FINISHED, Record


@dataclass(frozen=True)
class _Kept:
    """What is remembered of a finished job; the rest is on disk."""

    status: str
    uploads: tuple[str, ...]
    bytes: int


class JobStore:
    """Records as one JSON file each, written whole or not at all, and a folder of images each.

    Args:
        folder (`Path`): The state folder, which is made.
        limits (`Limits`): How much is kept.

    Raises:
        ValueError: if another server uses the folder.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self._limits = limits
        self._records = folder / "jobs"
        self._images = folder / "images"
        for path in (self._records, self._images):
            # What clients send and draw is nobody else's business on this machine.
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(folder / "lock")
        self._finished: dict[str, _Kept] = {}
        self._order: list[str] = []
        self._bytes = 0
        # Several threads finish jobs.
        self._changing = threading.RLock()

    def restore(self) -> list[Record]:
        """Read what a former process left, remove its half-done files, and return the jobs that are not finished."""
        for left in (*self._records.glob(".*.tmp"), *self._images.glob("*/.*.tmp")):
            shutil.rmtree(left, ignore_errors=True)
        waiting = []
        for path in sorted(self._records.glob("*.json")):
            record = self._read(path.stem)
            if record is None:
                # Written by another version, or changed by hand: it is kept for its owner, but not served.
                os.replace(path, path.with_suffix(".unreadable"))
            elif record.status in FINISHED:
                self._remember(record)
            else:
                waiting.append(record)
        known = self._finished.keys() | {record.id for record in waiting}
        for left in self._images.iterdir():
            if left.name not in known:
                shutil.rmtree(left, ignore_errors=True)
        self._forget_oldest()
        return waiting

    def save(self, record: Record) -> None:
        """Write a record; a finished one may let older ones go."""
        with written_at_once(self._records / f"{record.id}.json") as temporary:
            temporary.write_text(json.dumps(record.to_dict(), ensure_ascii=False), encoding="utf-8")
        if record.status in FINISHED:
            with self._changing:
                self._remember(record)
                self._forget_oldest()

    def discard(self, record: Record) -> None:
        """Remove the record of a job that was not taken in."""
        (self._records / f"{record.id}.json").unlink(missing_ok=True)

    def read(self, job: str) -> Record | None:
        """Return a finished job's record, or `None` if there is none."""
        return self._read(job) if job in self._finished else None

    def remove(self, job: str) -> bool:
        """Remove a finished job with its images; return whether there was one."""
        with self._changing:
            kept = self._finished.pop(job, None)
            if kept is None:
                return False
            del self._order[bisect_left(self._order, job)]
            self._bytes -= kept.bytes
        # Without its record a job is gone; images that are left are removed at the next start.
        (self._records / f"{job}.json").unlink(missing_ok=True)
        shutil.rmtree(self._images / job, ignore_errors=True)
        return True

    def image_folder(self, job: str) -> Path:
        """Return the folder of a job's images, which is made."""
        folder = self._images / job
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def image(self, record: Record, index: int) -> Path | None:
        """Return the file of an image of a record, or `None` if there is none."""
        if not 0 <= index < len(record.images):
            return None
        path = self._images / record.id / record.images[index]["file"]
        return path if path.is_file() else None

    def newest(self, before: str | None = None, status: str | None = None) -> Iterator[Record]:
        """Yield finished records, the newest first.

        Args:
            before (`str`, *optional*): Only those that are older than this id.
            status (`str`, *optional*): Only those of this status.
        """
        with self._changing:
            end = len(self._order) if before is None else bisect_left(self._order, before)
            jobs = self._order[:end]
        for job in reversed(jobs):
            kept = self._finished.get(job)
            if kept is None or (status is not None and kept.status != status):
                continue
            record = self._read(job)
            if record is not None:
                yield record

    def uploads(self) -> set[str]:
        """Return digests of the uploads that finished jobs name."""
        with self._changing:
            return {digest for kept in self._finished.values() for digest in kept.uploads}

    def close(self) -> None:
        """Let another server use the folder."""
        os.close(self._lock)

    def _remember(self, record: Record) -> None:
        sizes = [path.stat().st_size for path in (self._images / record.id).glob("*") if path.is_file()]
        if record.id not in self._finished:
            insort(self._order, record.id)
        self._finished[record.id] = _Kept(record.status, tuple(record.uploads), sum(sizes))
        self._bytes += sum(sizes)

    def _forget_oldest(self) -> None:
        while self._order and (len(self._order) > self._limits.keep_jobs or self._bytes > self._limits.keep_bytes):
            self.remove(self._order[0])

    def _read(self, job: str) -> Record | None:
        try:
            found = json.loads((self._records / f"{job}.json").read_text(encoding="utf-8"))
            return Record(**found)
        except (OSError, ValueError, TypeError):
            return None


def _lock(path: Path) -> int:
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ValueError(
            f"Another server uses the state folder `{path.parent}`. Stop it, or give this one a folder of its own."
        ) from None
    return handle
