"""Materialising a range of partitions without the UI, through Dagster's own instance, so that the UI shows it.

Belongs here: runs in this process, one per batch of partitions, and their progress. Does not belong here: the work.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.partition_keys import contiguous, parse_partition_key, partition_key
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase

if TYPE_CHECKING:
    # Dagster takes two seconds to import: not for `--help`.
    import dagster as dg

ASSETS = ("terminal_runs", "trajectories", "refined_outcomes")

_POLL_SECONDS = 0.5
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class MaterializationSummary:
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
) -> MaterializationSummary:
    """Materialise assets of these hours: neighbours in one Dagster run, at most a backfill batch at once.

    Dagster does not run what is downstream of a failed step, for no partition of its range: where some partitions are
    good, a run of their own follows for the rest of the assets. What takes more than one run is captured first, so that
    no run is judged before those that it continues are there, and then judged from the newest on, as a cap asks for.

    Args:
        hours: sorted.
        assets: names, upstream first.
        database: whose ledger shows how far it is.
        progress: is told the number of (asset, partition) pairs done, and what is under way.
    """
    import dagster as dg

    from trajectory_pipeline.definitions import build_defs
    from trajectory_pipeline.defs.jobs import JOB_NAME
    from trajectory_pipeline.defs.partitions import range_tags
    from trajectory_pipeline.settings import load_settings

    settings = load_settings()
    job = build_defs(settings).resolve_job_def(JOB_NAME)
    result = MaterializationSummary(len(hours))
    watch = _Watch(hours, assets, database, progress)
    ranges = contiguous(hours, settings.dagster.backfill_batch)
    capture = [name for name in assets if name != ASSETS[-1]]
    apart = len(ranges) > 1 and capture != list(assets)
    due = deque((first, last, capture if apart else list(assets)) for first, last in ranges if capture or not apart)
    judgeable: list[datetime] = [] if capture else list(hours)
    with dg.DagsterInstance.get() as instance, watch:
        while due or (apart and judgeable):
            if not due:
                newest_first = reversed(contiguous(sorted(judgeable), settings.dagster.backfill_batch))
                due.extend((first, last, [ASSETS[-1]]) for first, last in newest_first)
                judgeable = []
            first, last, chosen = due.popleft()
            watch.under_way = (
                partition_key(first) if first == last else f"{partition_key(first)} … {partition_key(last)}"
            )
            run = job.execute_in_process(
                instance=instance,
                partition_key=partition_key(first) if first == last else None,
                tags={"trajectory/reason": "command", **({} if first == last else range_tags(first, last))},
                asset_selection=[dg.AssetKey(name) for name in chosen],
                raise_on_error=False,
                run_config=_QUIET,
            )
            result.run_ids.append(run.run_id)
            good, rest = [hour for hour in hours if first <= hour <= last], list[str]()
            if not run.success:
                result.failures[run.run_id] = _why(run)
                good, rest = _held_up(run, instance, chosen)
                if rest:
                    due.extendleft(
                        (*pair, rest) for pair in reversed(contiguous(good, settings.dagster.backfill_batch))
                    )
            if apart and not rest and chosen != [ASSETS[-1]]:
                judgeable += good
    return result


def _why(run: "dg.ExecuteInProcessResult") -> str:
    for event in run.get_step_failure_events():
        told = event.step_failure_data
        shown = told.user_failure_data
        words = (shown.description if shown else None) or (told.error.message if told.error else "")
        return f"{event.step_key}: {' '.join(words.split())}"
    return "the Dagster run failed: see it in the UI"


def _held_up(
    run: "dg.ExecuteInProcessResult", instance: "dg.DagsterInstance", assets: Sequence[str]
) -> tuple[list[datetime], list[str]]:
    """Return the good partitions of the asset that failed, and the assets that were not run because of the bad ones.

    None where a check failed: what it found is meant to stop what is downstream.
    """
    import dagster as dg

    failed = next((name for name in assets for event in run.get_step_failure_events() if event.step_key == name), None)
    blocked = any(not check.passed and check.blocking for check in run.get_asset_check_evaluations())
    if failed is None or blocked:
        return [], []
    good = [
        parse_partition_key(entry.dagster_event.partition)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        if entry.dagster_event and entry.dagster_event.partition and entry.step_key == failed
    ]
    return sorted(good), list(assets[assets.index(failed) + 1 :])


class _Watch:
    """Follows the ledger in a thread of its own: a run in this process tells Dagster of a range only at its end."""

    def __init__(
        self,
        hours: Sequence[datetime],
        assets: Sequence[str],
        database: TrajectoryDatabase,
        progress: Callable[[int, str], None],
    ) -> None:
        self._keys = [partition_key(hour) for hour in hours]
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
        # It only shows how far the work is: what is wrong with the database, the work itself finds and says.
        with contextlib.suppress(PipelineError):
            self._tell()

    def _tell(self) -> None:
        rows = self._database.rows(
            "SELECT count(*) AS done FROM trajectory.partitions WHERE asset = ANY(%s) AND partition_key = ANY(%s)"
            " AND materialized_at >= %s",
            [list(self._assets), self._keys, self._began],
        )
        self._progress(rows[0]["done"], self.under_way)
