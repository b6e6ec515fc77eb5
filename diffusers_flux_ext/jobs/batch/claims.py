"""Claims on jobs, so that processes and machines that share a folder do not draw one twice."""

from __future__ import annotations

from pathlib import Path

from filelock import SoftFileLease, Timeout


SUFFIX = ".claim"


class Claims:
    """The claims of this process in a folder.

    A claim is a file with a heartbeat. It is given up when its process ends, on the same machine at once, and is taken
    over once nobody has touched it for `lease` seconds. Clocks of machines need not agree.

    Args:
        folder (`Path`): The folder of the claims; it is made with the first one.
        lease (`float`): Seconds; the same for all processes.
    """

    def __init__(self, folder: Path, lease: float) -> None:
        self.folder = folder
        self.lease = lease
        self._held: dict[str, SoftFileLease] = {}
        # A claim of another process is outdated once the same observer has seen it unchanged for long enough.
        self._watched: dict[str, SoftFileLease] = {}

    def take(self, name: str) -> bool:
        """Claim a job; return whether it was free.

        Args:
            name (`str`): The job's name.
        """
        if name in self._held:
            return False
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}{SUFFIX}"
        lease = self._watched.pop(name, None) or SoftFileLease(path, lease_duration=self.lease, thread_local=False)
        try:
            lease.acquire(blocking=False)
        except Timeout:
            self._watched[name] = lease
            return False
        self._held[name] = lease
        return True

    def release(self, name: str) -> None:
        """Give a claim up."""
        self._held.pop(name).release()

    def release_all(self) -> None:
        """Give all claims up."""
        for name in list(self._held):
            self.release(name)

    def taken(self) -> set[str]:
        """Return the names of all jobs that are claimed by any process, outdated claims included."""
        if not self.folder.is_dir():
            return set()
        return {path.name.removesuffix(SUFFIX) for path in self.folder.iterdir() if path.name.endswith(SUFFIX)}
