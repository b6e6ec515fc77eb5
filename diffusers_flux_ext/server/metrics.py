"""Numbers for monitoring, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters of one server.

    Args:
        queued (`Callable[[], int]`): Returns how many jobs wait.
        running (`Callable[[], int]`): Returns how many jobs are drawn.
        loaded (`Callable[[], int]`): Returns how many models are loaded.
    """

    def __init__(self, queued: Callable[[], int], running: Callable[[], int], loaded: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        gauges = {"jobs_queued": queued, "jobs_running": running, "models_loaded": loaded}
        for name, count in gauges.items():
            Gauge(f"flux_ext_{name}", name.replace("_", " "), registry=self._registry).set_function(count)
        self.jobs = Counter("flux_ext_jobs", "Finished jobs by status", ["status"], registry=self._registry)
        self.images = Counter("flux_ext_images", "Images drawn", registry=self._registry)
        self.refused = Counter("flux_ext_refused", "Jobs refused as the queue was full", registry=self._registry)
        self.requests = Counter("flux_ext_requests", "Requests", ["method", "status"], registry=self._registry)
        self.waits = Histogram(
            "flux_ext_job_wait_seconds", "Time in the queue", buckets=SECONDS, registry=self._registry
        )
        self.draws = Histogram("flux_ext_job_seconds", "Time of drawing", buckets=SECONDS, registry=self._registry)

    def text(self) -> bytes:
        """Return all numbers."""
        return generate_latest(self._registry)
