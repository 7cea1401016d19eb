"""Materialising a range of partitions without the UI, through Dagster's own instance, so that the UI shows it.

Belongs here: runs in this process, one per batch of partitions, and their progress. Does not belong here: the work.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from trajectory_pipeline.hours import key_of
from trajectory_pipeline.sinks.database import TrajectoryDatabase

ASSETS = ("terminal_runs", "trajectories", "refined_outcomes")

_POLL_SECONDS = 0.5
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class Materialized:
    """What came of it.

    Attributes:
        partitions: asked for.
        failures: by Dagster run, what went wrong, in words.
        run_ids: of all Dagster runs.
    """

    partitions: int
    failures: dict[str, str] = field(default_factory=dict)
    run_ids: list[str] = field(default_factory=list)


def materialize(
    hours: Sequence[datetime],
    assets: Sequence[str],
    database: TrajectoryDatabase,
    progress: Callable[[int, str], None],
) -> Materialized:
    """Materialise assets of these hours: neighbours in one Dagster run, at most a backfill batch at once.

    Args:
        hours: sorted.
        assets: names, upstream first.
        database: whose ledger shows how far it is.
        progress: is told the number of (asset, partition) pairs done, and what is under way.
    """
    # Dagster takes two seconds to import: not for `--help`.
    import dagster as dg

    from trajectory_pipeline.definitions import build_defs
    from trajectory_pipeline.orchestration.jobs import JOB_NAME
    from trajectory_pipeline.orchestration.partitions import contiguous, range_tags
    from trajectory_pipeline.settings import load_settings

    settings = load_settings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = build_defs(settings).resolve_job_def(JOB_NAME)
    result = Materialized(len(hours))
    watch = _Watch(hours, assets, database, progress)
    with dg.DagsterInstance.get() as instance, watch:
        for first, last in contiguous(hours, settings.backfill_batch):
            watch.under_way = key_of(first) if first == last else f"{key_of(first)} … {key_of(last)}"
            logging.getLogger("dagster").setLevel(logging.CRITICAL)
            run = job.execute_in_process(
                instance=instance,
                partition_key=key_of(first) if first == last else None,
                tags={"trajectory/reason": "command", **({} if first == last else range_tags(first, last))},
                asset_selection=[dg.AssetKey(name) for name in assets],
                raise_on_error=False,
                run_config=_QUIET,
            )
            result.run_ids.append(run.run_id)
            if not run.success:
                result.failures[run.run_id] = _why(run)
    return result


def _why(run: "dg.ExecuteInProcessResult") -> str:  # type: ignore[name-defined] # noqa: F821
    for event in run.all_events:
        failure = getattr(event.event_specific_data, "error", None) if event.is_step_failure else None
        if event.is_step_failure:
            shown = getattr(event.event_specific_data, "user_failure_data", None)
            words = getattr(shown, "description", None) or (failure.message if failure else "")
            return f"{event.step_key}: {' '.join(words.split())}"
    return "the Dagster run failed: see it in the UI"


class _Watch:
    """Follows the ledger in a thread of its own: a run in this process tells Dagster of a range only at its end."""

    def __init__(
        self,
        hours: Sequence[datetime],
        assets: Sequence[str],
        database: TrajectoryDatabase,
        progress: Callable[[int, str], None],
    ) -> None:
        self._keys = [key_of(hour) for hour in hours]
        self._assets = assets
        self._database = database
        self._progress = progress
        self._began = datetime.now(UTC)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.under_way = ""

    def __enter__(self) -> "_Watch":
        # By the database's clock, which writes the ledger's times.
        self._began = self._database.rows("SELECT clock_timestamp() AS now")[0]["now"]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        rows = self._database.rows(
            "SELECT count(*) AS done FROM trajectory.partitions WHERE asset = ANY(%s) AND partition_key = ANY(%s)"
            " AND materialized_at >= %s",
            [list(self._assets), self._keys, self._began],
        )
        self._progress(rows[0]["done"], self.under_way)
