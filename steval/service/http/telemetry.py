"""Prometheus metrics with bounded labels: the route's template, never the path; known methods; the status.

prometheus_client decides at its first import whether it counts over several processes, by the variable
PROMETHEUS_MULTIPROC_DIR that BentoML sets for its workers; so it is imported when a worker starts.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SHARED = "PROMETHEUS_MULTIPROC_DIR"
METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_CELLS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@functools.cache
def service_metrics() -> "ServiceMetrics":
    """This process's counters; made at the first call."""
    return ServiceMetrics()


class ServiceMetrics:
    """The service's counters; see `service_metrics`."""

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        import prometheus_client as prometheus

        registry = registry or prometheus.REGISTRY
        labels = ("method", "route", "status")
        self._requests = prometheus.Counter(
            "steval_requests_total", "Answered HTTP requests", labels, registry=registry
        )
        self._seconds = prometheus.Histogram(
            "steval_request_seconds", "Time to the last byte", ("route",), buckets=_SECONDS, registry=registry
        )
        self._in_progress = prometheus.Gauge(
            "steval_requests_in_progress", "Requests being answered", multiprocess_mode="livesum", registry=registry
        )
        self._cells = prometheus.Counter("steval_predicted_cells_total", "Predicted cells", registry=registry)
        self._busy = prometheus.Counter("steval_network_seconds_total", "Time in the network", registry=registry)
        self._batch_cells = prometheus.Histogram(
            "steval_batch_cells", "Cells that passed the network together", buckets=_CELLS, registry=registry
        )
        self._queued = prometheus.Gauge(
            "steval_queued_cells", "Cells accepted and not yet answered", multiprocess_mode="livesum", registry=registry
        )
        self._cached = prometheus.Counter(
            "steval_cache_total", "Predictions by whether they were computed before", ("result",), registry=registry
        )
        self._cache_bytes = prometheus.Gauge(
            "steval_cache_bytes", "Answers that are kept", multiprocess_mode="livesum", registry=registry
        )
        self._model_bytes = prometheus.Gauge(
            "steval_model_bytes", "Memory of the models, about", multiprocess_mode="livesum", registry=registry
        )
        self._model_loads = prometheus.Counter(
            "steval_model_loads_total", "Models that were loaded, or could not be", ("result",), registry=registry
        )
        self._jobs = prometheus.Counter(
            "steval_score_jobs_total", "Finished scoring jobs", ("state",), registry=registry
        )
        self._predictions = prometheus.Counter(
            "steval_prediction_jobs_total", "Finished predictions in the background", ("state",), registry=registry
        )
        self._waiting = prometheus.Gauge(
            "steval_waiting_jobs", "Jobs that wait", ("kind",), multiprocess_mode="livemax", registry=registry
        )

        # from the start at 0: what appears with its first 1 has not increased
        for result in ("hit", "miss", "not_modified"):
            self._cached.labels(result)
        for result in ("ok", "failed"):
            self._model_loads.labels(result)
        for state in ("done", "failed", "cancelled"):
            self._jobs.labels(state)
            self._predictions.labels(state)

    def started(self) -> None:
        """A request has come."""
        self._in_progress.inc()

    def finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request has been answered; `route` is a template of ours or `other`."""
        self._in_progress.dec()
        self._requests.labels(method if method in METHODS else "OTHER", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, num_sets: int, num_cells: int, seconds: float) -> None:
        """A batch has passed the network."""
        self._cells.inc(num_cells)
        self._busy.inc(seconds)
        self._batch_cells.observe(num_cells)

    def queued(self, difference: int) -> None:
        """The queue of a model has changed by so many cells."""
        self._queued.inc(difference)

    def cache(self, result: str) -> None:
        """An answer was kept (`hit`), was not (`miss`), or the client had it (`not_modified`)."""
        self._cached.labels(result).inc()

    def cache_memory(self, num_bytes: int) -> None:
        """So many bytes of answers are kept."""
        self._cache_bytes.set(num_bytes)

    def model_memory(self, num_bytes: int) -> None:
        """The models in memory take so much now."""
        self._model_bytes.set(num_bytes)

    def model_loaded(self, result: str) -> None:
        """A model was loaded (`ok`), or could not be (`failed`)."""
        self._model_loads.labels(result).inc()

    def job(self, kind: str, state: str) -> None:
        """A job of `kind` (`scoring`, `prediction`) has ended."""
        (self._jobs if kind == "scoring" else self._predictions).labels(state).inc()

    def waiting(self, kind: str, num_jobs: int) -> None:
        """So many jobs of a kind wait, of all workers."""
        self._waiting.labels(kind).set(num_jobs)


def count_apart(directory: Path) -> None:
    """Count in `directory`, where BentoML would count over several processes: its own directory is one for all services of a
    user, and each that starts empties it. To be called before the first counter is made."""
    if os.environ.get(_SHARED):
        os.environ[_SHARED] = str(directory)


def exposition() -> tuple[bytes, str]:
    """All metrics in Prometheus's text form, over all workers, and its media type."""
    import prometheus_client as prometheus
    from prometheus_client import multiprocess

    directory = os.environ.get(_SHARED)
    if not directory:
        return prometheus.generate_latest(prometheus.REGISTRY), prometheus.CONTENT_TYPE_LATEST
    for pid in {int(path.stem.rsplit("_", 1)[1]) for path in Path(directory).glob("gauge_live*_*.db")}:
        if not _is_alive(pid):
            multiprocess.mark_process_dead(pid, directory)  # a killed worker's queue is gone with it
    registry = prometheus.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
