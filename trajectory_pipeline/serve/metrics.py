"""Metrics of the service for Prometheus: requests and their durations, without anything about tenants.

Several processes keep their values in files of one folder (``PROMETHEUS_MULTIPROC_DIR``, which has to be set before
this module is imported), and each of them answers for all.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route")
        self.requests = Counter(
            "trajectory_http_requests", "Requests by route and status.", (*labels, "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "trajectory_http_request_seconds",
            "Seconds from the first byte of a request to the last of its response.",
            labels,
            registry=self._registry,
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.running = Gauge(
            "trajectory_http_requests_running",
            "Requests in progress.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )

    def text(self) -> bytes:
        """Return all metrics, of all processes, in Prometheus' text format."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        of_all = CollectorRegistry()
        MultiProcessCollector(of_all)  # type: ignore[no-untyped-call]
        return generate_latest(of_all)


def forget_process(process: int) -> None:
    """Leave out the requests in progress of a process that has ended."""
    mark_process_dead(process)  # type: ignore[no-untyped-call]
