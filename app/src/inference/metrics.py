"""Counts and times of one process of a vassal, in files that the host's exporter adds up over all processes.

A vassal has several processes, and whoever asks for its metrics must not have to wait for one of them to be free. So
each process keeps its numbers in memory-mapped files below ``Config.metrics``, by prometheus_client's multiprocess
mode, and :mod:`inference.exporter` reads them. A worker that uWSGI starts anew goes on with the files of its former.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference import server
from inference.config import RESERVED_ROUTES, Config

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

#: Parts that the time of a request has.
STAGES = ("queue", "decode", "compute", "total")
#: Bounds in seconds: from an MLP on a GPU to a page on a slow CPU.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: Bounds of the number of requests computed together.
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)
#: Route of requests for which there is none: each path by itself would be a series of its own.
NO_ROUTE = "other"
#: Identity of the model process among the processes of a vassal.
MODEL_PROCESS = "model"


class Metrics:
    """The metrics of this process.

    Args:
        folder: where its files are; made when it is missing.
        identity: which process of the vassal this is; the next one of that name goes on with its numbers.
        route: the service's route.
    """

    def __init__(self, folder: Path, identity: str, route: str) -> None:
        client = _client(folder, identity)
        registry = client.CollectorRegistry(auto_describe=True)

        def counter(name: str, text: str, *labels: str) -> Counter:
            made: Counter = client.Counter(name, text, labels, registry=registry)
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            made: Histogram = client.Histogram(name, text, labels, buckets=bounds, registry=registry)
            return made

        def gauge(name: str, text: str) -> Gauge:
            made: Gauge = client.Gauge(name, text, registry=registry, multiprocess_mode="sum")
            # The process before this one may have left anything.
            made.set(0)
            return made

        self._routes = {route, *RESERVED_ROUTES}
        self._requests = counter("fleet_requests", "Requests answered", "route", "status")
        self._rejected = counter("fleet_requests_rejected", "Requests answered with a problem", "reason")
        seconds = histogram("fleet_request_duration_seconds", "Where the time of good answers went", SECONDS, "stage")
        self._stages = [seconds.labels(stage).observe for stage in STAGES]
        # Looking a series up by its labels costs as much as counting in it.
        self._answered = self._requests.labels(route, "200").inc
        self._in_flight = gauge("fleet_requests_in_flight", "Requests that the app has and has not answered")
        self.began: Callable[[], None] = self._in_flight.inc

    def finished(self, path: str, status: int, problem: str | None, stages: tuple[float, ...] | None) -> None:
        """Count a request that was answered.

        Args:
            path: its path.
            status: of the answer.
            problem: last part of the type of the problem that it was answered with.
            stages: seconds of each of :data:`STAGES`, where the model has answered.
        """
        self._in_flight.dec()
        if stages is not None and status == 200:
            self._answered()
            for observe, seconds in zip(self._stages, stages, strict=True):
                observe(seconds)
            return
        self._requests.labels(path if path in self._routes else NO_ROUTE, str(status)).inc()
        if problem is not None:
            self._rejected.labels(problem).inc()


class QueueMetrics:
    """The metrics of a model process.

    Args:
        folder: where its files are; made when it is missing.
        most: requests that may wait.
    """

    def __init__(self, folder: Path, most: int) -> None:
        client = _client(folder, MODEL_PROCESS)
        registry = client.CollectorRegistry(auto_describe=True)
        gauge: Mapping[str, Any] = {"registry": registry, "multiprocess_mode": "sum"}
        client.Gauge("fleet_queue_items_max", "Requests that may wait for the device", **gauge).set(most)
        self._waiting: Gauge = client.Gauge("fleet_queue_items", "Requests that wait for the device", **gauge)
        self._waiting.set(0)
        self._said = 0
        #: Note the number of requests computed together.
        self.computed: Callable[[float], None] = client.Histogram(
            "fleet_batch_items", "Requests computed together", buckets=ITEMS, registry=registry
        ).observe

    def waiting(self, items: int) -> None:
        """Note how many requests wait."""
        if items != self._said:
            self._said = items
            self._waiting.set(items)


def of_worker(config: Config) -> Metrics | None:
    """Give the metrics of this web worker; None where nobody wants them."""
    if config.metrics is None:
        return None
    uwsgi = server.uwsgi()
    identity = str(os.getpid()) if uwsgi is None else str(uwsgi.worker_id())
    return Metrics(config.metrics, identity, config.route)


def of_model_process(config: Config) -> QueueMetrics | None:
    """Give the metrics of this model process; None where nobody wants them."""
    return None if config.metrics is None else QueueMetrics(config.metrics, config.queue_max_items)


def _client(folder: Path, identity: str) -> Any:
    """Give prometheus_client, which decides when it is imported that values are to be kept in files."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    import prometheus_client
    from prometheus_client import values

    # Without types of its own.
    kept_in_files: Any = values.MultiProcessValue
    values.ValueClass = kept_in_files(lambda: identity)
    return prometheus_client
