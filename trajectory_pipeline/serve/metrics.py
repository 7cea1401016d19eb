"""Metrics of the service for Prometheus: requests and their durations, without anything about tenants."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


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
        self.running = Gauge("trajectory_http_requests_running", "Requests in progress.", registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
