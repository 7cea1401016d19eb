"""What must hold at the end: both sinks equal a build from scratch in one process, and each run has one verdict."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Table
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

Row = dict[str, Any]
_TIMES = ("first_captured_at", "updated_at", "first_seen_at", "last_seen_at")


def check_equal_to_scratch(
    sink: Pipeline,
    scratch: Pipeline,
    hours: Sequence[datetime],
    *,
    complete: bool = True,
    deleted: frozenset[str] = frozenset(),
) -> None:
    """Compare Parquet, Postgres, the quarantine and the ledger, row by row.

    ``complete``: the source has no other hours; ``deleted``: runs that only the sink still has.
    """
    for hour in hours:
        for table in (TERMINAL_RUNS, TRAJECTORIES):
            found = [row for row in parquet_rows(sink, table, hour) if row["run_id"] not in deleted]
            assert found == parquet_rows(scratch, table, hour), (table.name, hour)
    for name in ("trajectories", "quarantine"):
        rows = {run_id: row for run_id, row in postgres_rows(sink, name).items() if run_id not in deleted}
        assert rows == postgres_rows(scratch, name)
    if not deleted:
        assert ledger(sink) == ledger(scratch)
    assert sink.ask("SELECT * FROM trajectory.invalidations") == []
    if not complete:
        return
    scope = CompletenessScope(hours[0], timedelta(days=10_000))
    assert check_completeness(LettaSource(sink.letta_url), sink.storage, scope).differences == ()


def check_verdicts(sink: Pipeline, hours: Sequence[datetime]) -> None:
    """Each trajectory has one verdict under the one policy, in Postgres and in the file of its partition."""
    rows = sink.ask("SELECT run_id, partition_key, verdict_status FROM trajectory.outcomes")
    statuses = Counter(row["verdict_status"] for row in rows)
    assert set(statuses) <= {"judged", "insufficient_evidence", "not_eligible"}, statuses
    held = [(row["run_id"], partition_key(hour)) for hour in hours for row in sink.parquet(REFINED_OUTCOMES, hour)]
    assert sorted(held) == sorted((row["run_id"], row["partition_key"]) for row in rows)
    # One is judged again only where an earlier run of its conversation was captured after it.
    assert sink.ask("SELECT run_id FROM trajectory.verdicts GROUP BY run_id, shown_digests HAVING count(*) > 1") == []


def parquet_rows(pipeline: Pipeline, table: Table, hour: datetime) -> list[Row]:
    return [row for batch in pipeline.store.read(table, hour) for row in batch.to_pylist()]


def postgres_rows(pipeline: Pipeline, table: str) -> dict[str, Row]:
    rows = pipeline.ask(f"SELECT * FROM trajectory.{table}")
    return {row["run_id"]: {name: value for name, value in row.items() if name not in _TIMES} for row in rows}


def ledger(pipeline: Pipeline) -> dict[tuple[str, str], tuple[str | None, str]]:
    return {
        (table.name, key): (entry.fingerprint, entry.content_digest)
        for table in (TERMINAL_RUNS, TRAJECTORIES)
        for key, entry in pipeline.database.ledger(table.name).items()
    }
