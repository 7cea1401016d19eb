"""Metrics of the pipeline for Prometheus: capture lag, quarantine, stale partitions, backlog, spend, Dagster's runs.

All are over the whole database, so only a token that sees all tenants gets them. ``deploy/monitoring`` has a dashboard
and alert rules over them.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.serve.dagster_queue import DagsterQueue
from trajectory_pipeline.serve.problems import ProblemError
from trajectory_pipeline.serve.service import Service
from trajectory_pipeline.storage.postgres.pipeline_state import read_pipeline_state

_FRESH_SECONDS = 15.0
_FAILED_AGE = timedelta(hours=1)


class PipelineMetrics:
    """Makes the text of one service, and makes it anew when it is 15 seconds old."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format; where the database cannot be read, one that says so."""
        with self._lock:
            if time.monotonic() >= self._until:
                registry = CollectorRegistry()
                self._add_database(registry)
                self._add_dagster(registry)
                self._text, self._until = generate_latest(registry), time.monotonic() + _FRESH_SECONDS
            return self._text

    def _add_database(self, registry: CollectorRegistry) -> None:
        settings, now = self._service.settings, datetime.now(UTC)
        read = Gauge("trajectory_database_up", "1 where the pipeline's state could be read, else 0.", registry=registry)
        try:
            with self._service.database.reading(None) as connection:
                lookback = timedelta(days=settings.judge.lookback_days)
                state = read_pipeline_state(connection, day=f"{now:%Y-%m-%d}", lookback=lookback)
        except PipelineError:
            read.set(0)
            return
        read.set(1)
        if state.lag:
            lag = Gauge(
                "trajectory_capture_lag_seconds",
                "Time from the end of runs to their rows, of those that ended in the last hour.",
                ["statistic"],
                registry=registry,
            )
            lag.labels("median").set(state.lag.median.total_seconds())
            lag.labels("max").set(state.lag.longest.total_seconds())
        values: dict[str, tuple[str, int | Decimal]] = {
            "trajectory_trajectories": ("Trajectories, as Postgres estimates them.", state.trajectories),
            "trajectory_quarantined_runs": ("Runs that could not be converted.", state.quarantined),
            "trajectory_spent_usd": ("Spent on judging today (UTC).", state.spent_usd),
            "trajectory_reserved_usd": ("Reserved for calls to judges in progress, or lost.", state.reserved_usd),
            "trajectory_daily_budget_usd": ("TRAJECTORY_DAILY_BUDGET_USD.", settings.budget.daily_usd),
            "trajectory_spent_tokens": ("Tokens of judging today (UTC).", state.spent_tokens),
            "trajectory_database_bytes": ("Size of the trajectory database.", state.database_bytes),
        }
        for name, (meaning, value) in values.items():
            Gauge(name, meaning, registry=registry).set(float(value))
        _add_labeled(
            registry,
            "trajectory_stale_partitions",
            "Partitions to materialize again, by reason.",
            ["reason"],
            (([reason], partitions) for reason, partitions in state.stale.items()),
        )
        _add_labeled(
            registry,
            "trajectory_last_materialization_timestamp_seconds",
            "Unix time of the newest materialization with rows, by asset.",
            ["asset"],
            (([asset], at.timestamp()) for asset, at in state.materialized_at.items()),
        )
        _add_labeled(
            registry,
            "trajectory_recent_verdicts",
            "Trajectories within TRAJECTORY_JUDGE_LOOKBACK_DAYS by verdict status (none: not judged) and error class.",
            ["status", "error_class"],
            state.verdicts.items(),
        )

    def _add_dagster(self, registry: CollectorRegistry) -> None:
        """Add what Dagster's webserver says; nothing where the settings name none."""
        url = self._service.settings.notices.dagster_ui_url
        if url is None:
            return
        up = Gauge("trajectory_dagster_up", "1 where Dagster's webserver answers, else 0.", registry=registry)
        try:
            state = DagsterQueue(url).state((datetime.now(UTC) - _FAILED_AGE).timestamp())
        except ProblemError:
            up.set(0)
            return
        up.set(1)
        _add_labeled(
            registry,
            "trajectory_dagster_runs",
            "Dagster runs that are queued, running, or failed in the last hour.",
            ["state"],
            (([name], number) for name, number in state.runs.items()),
        )
        _add_labeled(
            registry,
            "trajectory_dagster_daemon_healthy",
            "1 where a daemon reports itself, else 0.",
            ["daemon"],
            (([daemon], healthy) for daemon, healthy in state.daemons.items()),
        )


def _add_labeled(
    registry: CollectorRegistry,
    name: str,
    meaning: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], float]],
) -> None:
    """Add a gauge with a value for each combination of its labels."""
    gauge = Gauge(name, meaning, labels, registry=registry)
    for combination, value in values:
        gauge.labels(*combination).set(value)
