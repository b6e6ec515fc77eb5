"""What a folder of results must be able to do."""

from __future__ import annotations

from typing import Protocol


CLAIMS = ".claims"


class Holder(Protocol):
    """Holds jobs for this process, so that no other one draws them."""

    def take(self, name: str) -> bool:
        """Claim a job; return whether it was free."""

    def release(self, name: str) -> None:
        """Give a claim up."""

    def release_all(self) -> None:
        """Give all claims up."""

    def taken(self) -> set[str]:
        """Return the names of all jobs that are claimed by any process, as far as it can be seen."""


class Store(Protocol):
    """A folder without folders inside of it."""

    def where(self, name: str) -> str:
        """Return where a file is, as the user writes it."""

    def names(self) -> list[str]:
        """Return the names of all files."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, and `None` if there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a file."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def is_as_written(self, name: str, sha256: str, size: int | None) -> bool:
        """Whether a file is there as it was written, as far as the store can tell at little cost."""

    def holder(self, lease: float, pause: float) -> Holder:
        """Return claims on the jobs of the folder.

        Args:
            lease (`float`): Seconds without a heartbeat after which claims of another process are taken over.
            pause (`float`): Seconds between looks at what another process holds.
        """
