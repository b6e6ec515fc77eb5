"""The engine that draws on a Ray cluster."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..engine import Outcome, Work
from .crew import Crew
from .session import Session, WorkersError
from .worker import Worker


class RayEngine:
    """Draws jobs in actors of Ray, each of which holds one runner.

    This process hands jobs out and writes results; actors need no shared disk. A job whose actor or node ends, or
    fails with it, goes to another one.

    Args:
        make_runner (`Callable`): Returns a `JobRunner`; called in each actor; it must be importable there.
        workers (`int`, *optional*): Actors; as many as the cluster has GPUs, or one, by default.
        tries (`int`, *optional*, defaults to 3): How often a job is tried until it counts as failed.
        timeout (`float`, *optional*): Seconds, loading included, after which a job's actor counts as lost.
        address (`str`, *optional*): The cluster's address; by default Ray runs on this machine as long as it draws.
        gpus (`bool`, *optional*, defaults to `True`): Whether each actor takes a GPU, where the cluster has any.
        on_start (`Callable`, *optional*): Called with each job before it is drawn.
    """

    def __init__(
        self,
        make_runner: Callable[[], Any],
        workers: int | None = None,
        tries: int = 3,
        timeout: float | None = None,
        address: str | None = None,
        gpus: bool = True,
        on_start: Callable[[Work], None] | None = None,
    ) -> None:
        self.make_runner, self.workers, self.tries, self.timeout = make_runner, workers, tries, timeout
        self.address, self.gpus, self.on_start = address, gpus, on_start

    def run(self, work: Iterable[Work | None], report: Callable[[Outcome], None]) -> None:
        """Draw all work, see [`~batch.Engine`]; nothing is started without any.

        Raises:
            WorkersError: if the cluster is not there, workers cannot be started, or they have other versions.
        """
        remaining = iter(work)
        try:
            first = next(remaining)
        except StopIteration:
            return
        with _connected(self.address, self.workers or 1) as ray:
            crew = self._crew(ray)
            try:
                jobs = itertools.chain([first], remaining)
                Session(crew, jobs, report, self.tries, self.timeout, lambda: _alive(ray), self.on_start).run()
            finally:
                crew.dismiss_all()

    def _crew(self, ray: Any) -> Crew:
        import torch

        cards = int(ray.cluster_resources().get("GPU", 0)) if self.gpus else 0
        # Jobs that an actor lost are handed out anew by the session, which counts how often.
        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=1 if cards else 0, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        folder, threads = os.getcwd(), torch.get_num_threads()
        return Crew(lambda: actor.remote(self.make_runner, folder, threads), ray.kill, self.workers or max(cards, 1))


def _alive(ray: Any) -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[Any]:
    """Yield `ray`, connected to a cluster: the one this process uses already, the one at the address, or a new one."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    own: dict[str, Any] = {"num_cpus": max(os.cpu_count() or 1, workers), "include_dashboard": False}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray puts workers behind all other processes, so that on a busy machine they may never start.
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own)
        )
    except Exception as error:
        # Ray raises `Exception` itself where its own processes do not start in time.
        raise WorkersError(f"the Ray cluster {address or 'of this machine'} cannot be used: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
