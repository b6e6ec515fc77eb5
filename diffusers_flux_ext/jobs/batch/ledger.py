"""Handing jobs out, each once, and writing down what became of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from .engine import Outcome, Work
from .grouping import grouped
from .results import ResultFolder


LEASE, PAUSE = 60.0, 0.5


class ProcessEnded(RuntimeError):
    """A process ended while it drew a job, as often as it was tried."""


class Ledger:
    """The bookkeeping of one process.

    Args:
        works (`Sequence[Work]`): The jobs, each once, in any order.
        folder (`ResultFolder`): Where the results are.
        retry_failed (`bool`): Whether jobs that failed before are drawn again.
        lease (`float`): Seconds without a heartbeat after which a claim is taken over.
        pause (`float`): Seconds between looks at what other processes hold.
        tries (`int`, *optional*):
            How many processes may end while they draw a job until it counts as failed. Without it that is not noted,
            as for engines that draw elsewhere.
    """

    def __init__(
        self,
        works: Sequence[Work],
        folder: ResultFolder,
        retry_failed: bool = False,
        lease: float = LEASE,
        pause: float = PAUSE,
        tries: int | None = None,
    ) -> None:
        self.folder = folder
        self.claims = folder.store.holder(lease, pause)
        self.pause, self.tries = pause, tries
        self._old_errors = {work.name: folder.error(work.name) for work in works} if retry_failed else {}
        self._handed_out: set[str] = set()
        self._begun: set[str] = set()
        self._works = works
        self.open = [work for work in works if not self.is_settled(work)]

    def is_settled(self, work: Work) -> bool:
        """Whether a job is done, or has failed and is not to be tried again.

        Args:
            work (`Work`): The job.
        """
        error = self.folder.error(work.name)
        if error is not None and error != self._old_errors.get(work.name):
            return True
        return self.folder.record(work.name, work.digest) is not None

    def hand_out(self) -> Iterator[Work | None]:
        """Yield each open job once it is claimed.

        While other processes hold all that is left, which they may give up, it pauses and yields `None`.
        """
        groups = grouped(self.open, lambda work: work.job.to_dict())
        while groups:
            before = len(self._handed_out)
            for group in self._free_first(groups):
                for work in group:
                    if self._take(work):
                        self._handed_out.add(work.name)
                        yield work
            left = [[work for work in group if self._is_elsewhere(work)] for group in groups]
            groups = [group for group in left if group]
            if groups and len(self._handed_out) == before:
                time.sleep(self.pause)
                yield None

    def _is_elsewhere(self, work: Work) -> bool:
        return work.name not in self._handed_out and not self.is_settled(work)

    def _free_first(self, groups: Sequence[Sequence[Work]]) -> Iterator[Sequence[Work]]:
        """Yield all groups; each time the first one that no other process works on, so that models are loaded once."""
        left = list(groups)
        while left:
            taken = self.claims.taken()
            free = (group for group in left if taken.isdisjoint(work.name for work in group))
            chosen = next(free, left[0])
            left.remove(chosen)
            yield chosen

    def _take(self, work: Work) -> bool:
        if not self.claims.take(work.name):
            return False
        # Whoever held the claim before may have drawn it, or ended with it.
        if self.is_settled(work) or not self._begin(work):
            self.claims.release(work.name)
            return False
        return True

    def _begin(self, work: Work) -> bool:
        """Note that a job is begun; return whether it may be."""
        if self.tries is None:
            return True
        count = self.folder.starts(work.name)
        if count < self.tries:
            # First, so that an interruption from here on takes the note back.
            self._begun.add(work.name)
            self.folder.count_start(work.name, count + 1)
            return True
        error = ProcessEnded(
            f"{count} processes ended while they drew it, for example for want of memory; "
            "`--retry-failed` tries it again"
        )
        self.folder.save_error(work.name, self._failure(work, error))
        self.folder.count_start(work.name, 0)
        return False

    def report(self, outcome: Outcome) -> None:
        """Write down what became of a job, and give up its claim.

        Args:
            outcome (`Outcome`): The job with its images or its error.
        """
        work = outcome.work
        if outcome.result is None:
            self.folder.save_error(work.name, self._failure(work, outcome.error))
        else:
            result, suffix = outcome.result, work.job.output.format.replace("jpeg", "jpg")
            told = {"seeds": list(result.seeds), "seconds": round(result.seconds, 3)}
            self.folder.save(work.name, result.images, f".{suffix}", {**_stamp(work), **told})
        self._settle(work.name)
        self.claims.release(work.name)

    def give_up(self) -> None:
        """Give up all claims; what was begun and not reported counts as never begun."""
        for name in list(self._begun):
            self._settle(name)
        self.claims.release_all()

    def sweep(self) -> None:
        """Remove what killed processes left behind beside jobs that are settled."""
        names = {work.name for work in self._works}
        for name in names & self.claims.taken():
            if self.claims.take(name):
                self.folder.count_start(name, 0)
                self.claims.release(name)

    def _settle(self, name: str) -> None:
        if name in self._begun:
            self.folder.count_start(name, 0)
            self._begun.remove(name)

    def _failure(self, work: Work, error: Exception | None) -> dict[str, Any]:
        return {**_stamp(work), **described(error or RuntimeError("no result")), "job": work.job.to_dict()}


def _stamp(work: Work) -> dict[str, Any]:
    return {"digest": work.digest, "finished": datetime.now(UTC).isoformat(timespec="microseconds")}


def described(error: Exception) -> dict[str, Any]:
    """Return what a record says about an error: its kind, its message, wrong fields, and where it was raised.

    Args:
        error (`Exception`): The error; one of another process brings its `record`.
    """
    if (record := getattr(error, "record", None)) is not None:
        return dict(record)
    problems = [{"field": each.field, "message": each.message} for each in getattr(error, "problems", ())]
    # Problems of a job are the user's; anything else may be a fault of the package or of the machine.
    where = [] if problems else traceback.format_exception(error)
    return {
        "error": type(error).__name__, "message": str(error), "problems": problems, "traceback": "".join(where),
    }  # fmt: skip
