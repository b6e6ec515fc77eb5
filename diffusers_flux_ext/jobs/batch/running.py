"""Running a list of jobs into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from .engine import Engine, Outcome, Work
from .ledger import LEASE, PAUSE, Ledger, described
from .listed import Listed
from .results import ResultFolder
from .summary import SUMMARY, summarize, write_summary


class Run:
    """A run of a list of jobs.

    It can be stopped at any moment and started again, also by several processes at once: what is in the folder and
    whole is not drawn again.

    Args:
        listed (`Sequence[Listed]`): The list.
        folder (`str` or `os.PathLike`): Where the results go: a folder, or a URL that fsspec knows.
        retry_failed (`bool`, *optional*, defaults to `False`): Whether jobs that failed before are drawn again.
        lease (`float`, *optional*, defaults to 60): Seconds after which a job of a machine that is gone is taken over.
        pause (`float`, *optional*, defaults to 0.5): Seconds between looks at what other processes hold.
        tries (`int`, *optional*):
            How many processes may end while they draw a job until it counts as failed; for engines that draw in their
            own process.
    """

    def __init__(
        self,
        listed: Sequence[Listed],
        folder: str | os.PathLike[str],
        retry_failed: bool = False,
        lease: float = LEASE,
        pause: float = PAUSE,
        tries: int | None = None,
    ) -> None:
        self.listed = listed
        self.folder = ResultFolder(folder)
        works: dict[str, Work] = {}
        for each in listed:
            if each.work is not None:
                works.setdefault(each.name, each.work)
        self.works = list(works.values())
        self._record_wrong_entries()
        self._ledger = Ledger(self.works, self.folder, retry_failed, lease, pause, tries)

    @property
    def open(self) -> list[Work]:
        """The jobs that are to be drawn."""
        return self._ledger.open

    def _record_wrong_entries(self) -> None:
        for each in self.listed:
            if each.error is not None:
                self.folder.save_error(each.name, {"place": each.place, **described(each.error)})
            else:
                self.folder.forget_error(each.wrong_name)

    def __call__(self, engine: Engine, on_outcome: Callable[[Outcome], None] | None = None) -> list[dict[str, Any]]:
        """Draw what is open, and write the manifest and the contact sheet.

        Args:
            engine (`Engine`): Draws.
            on_outcome (`Callable`, *optional*): Called with each outcome after it is written down.

        Returns:
            `list[dict[str, Any]]`: what became of each entry, see [`~summary.summarize`].
        """

        def report(outcome: Outcome) -> None:
            self._ledger.report(outcome)
            if on_outcome is not None:
                on_outcome(outcome)

        try:
            engine.run(self._ledger.hand_out(), report)
            self._ledger.sweep()
            # Who finds it claimed leaves it to the process that writes it now.
            if self._ledger.claims.take(SUMMARY):
                write_summary(self.listed, self.folder)
        finally:
            self._ledger.give_up()
        return summarize(self.listed, self.folder)
