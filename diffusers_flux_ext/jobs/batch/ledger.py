"""Handing jobs out, each once, and writing down what became of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from .claims import Claims
from .engine import Outcome, Work
from .grouping import grouped
from .results import CLAIMS, ResultFolder


LEASE, PAUSE = 60.0, 0.5


class Ledger:
    """The bookkeeping of one process.

    Args:
        works (`Sequence[Work]`): The jobs, each once, in any order.
        folder (`ResultFolder`): Where the results are.
        write (`Callable`): Writes an image of a job: `write(work, image, path, index)`.
        retry_failed (`bool`): Whether jobs that failed before are drawn again.
        lease (`float`): Seconds without a heartbeat after which a claim is taken over.
        pause (`float`): Seconds between looks at what other processes hold.
    """

    def __init__(
        self,
        works: Sequence[Work],
        folder: ResultFolder,
        write: Callable[[Work, Any, Any, int], Any],
        retry_failed: bool = False,
        lease: float = LEASE,
        pause: float = PAUSE,
    ) -> None:
        self.folder = folder
        self.claims = Claims(folder.path / CLAIMS, lease)
        self.pause = pause
        self._write = write
        self._old_errors = {work.name: folder.error(work.name) for work in works} if retry_failed else {}
        self._handed_out: set[str] = set()
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

    def hand_out(self) -> Iterator[Work]:
        """Yield each open job once it is claimed; wait for jobs of other processes, which may be given up."""
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
        # Whoever held the claim before may have drawn it.
        if self.is_settled(work):
            self.claims.release(work.name)
            return False
        return True

    def report(self, outcome: Outcome) -> None:
        """Write down what became of a job, and give up its claim.

        Args:
            outcome (`Outcome`): The job with its images or its error.
        """
        work = outcome.work
        common = {"digest": work.digest, "finished": datetime.now(UTC).isoformat(timespec="microseconds")}
        if outcome.error is not None:
            self.folder.save_error(work.name, {**common, **described(outcome.error), "job": work.job.to_dict()})
        else:
            result = outcome.result
            self.folder.save(
                work.name,
                result.images,
                f".{work.job.output.format.replace('jpeg', 'jpg')}",
                lambda image, path, index: self._write(work, image, path, index),
                {**common, "seeds": list(result.seeds), "seconds": round(result.seconds, 3)},
            )
        self.claims.release(work.name)


def described(error: Exception) -> dict[str, Any]:
    """Return what a record says about an error: its kind, its message, wrong fields, and where it was raised.

    Args:
        error (`Exception`): The error.
    """
    problems = [{"field": each.field, "message": each.message} for each in getattr(error, "problems", ())]
    # Problems of a job are the user's; anything else may be a fault of the package or of the machine.
    where = [] if problems else traceback.format_exception(error)
    return {
        "error": type(error).__name__, "message": str(error), "problems": problems, "traceback": "".join(where),
    }  # fmt: skip
