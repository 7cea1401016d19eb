"""The contract of the assets: one partition or a range, the same; a bad partition fails by itself and is named.

Real sources, sinks and (simulated) judge; Dagster's instance is in memory. What Dagster recorded is read back from the
instance, since that is what the UI shows.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg
import duckdb
import pytest
from dagster import serialize_value

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import SourceError
from trajectory_pipeline.judge.client import session
from trajectory_pipeline.letta.snapshot import LettaSource, Snapshot
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.settings import Settings
from trajectory_pipeline_tests.conftest import API_KEY
from trajectory_pipeline_tests.defs.conftest import BUSY, Day
from trajectory_pipeline_tests.defs.dagster_runs import (
    ASSETS,
    CAPTURE,
    check_evaluations,
    execute,
    hours_from,
    log_messages,
    materializations,
    query,
    run,
    started_steps,
    step_failure,
)
from trajectory_pipeline_tests.letta_sample import sample_partitions

IN_PARQUET = ASSETS[:3]

# ---- a range that goes well -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", ASSETS)
def test_range_run_materializes_every_partition(day: Day, asset: str) -> None:
    assert set(materializations(day.instance, asset)) == {partition_key(hour) for hour in day.hours}


@pytest.mark.parametrize("asset", IN_PARQUET)
def test_metadata_has_row_count_and_uri(day: Day, asset: str) -> None:
    runs = sample_partitions()
    for hour in day.hours:
        metadata = materializations(day.instance, asset)[partition_key(hour)]
        assert metadata["dagster/partition_row_count"] == runs.get(hour, 0)
        assert (
            metadata["dagster/uri"]
            == f"{day.settings.storage.parquet_location}/{asset}/hour={hour:%Y-%m-%dT%H}/part-0.parquet"
        )


def test_terminal_runs_metadata_counts_rows_and_dates_the_snapshot(day: Day) -> None:
    read = materializations(day.instance, "terminal_runs").values()
    runs, steps, messages = query(
        str(day.settings.source.postgres_url),
        "SELECT count(*), (SELECT count(*) FROM steps s WHERE s.run_id = ANY(array_agg(r.id))),"
        " (SELECT count(*) FROM messages m WHERE m.run_id = ANY(array_agg(r.id))) FROM runs r WHERE status IN"
        " ('completed', 'failed', 'cancelled') AND coalesce(completed_at, created_at) >= %s::timestamp"
        " AND coalesce(completed_at, created_at) < %s::timestamp + interval '1 hour'",
        [day.hours[0].replace(tzinfo=None), day.hours[-1].replace(tzinfo=None)],
    )[0]
    assert runs > 50
    for name, number in (("runs", runs), ("steps", steps), ("messages", messages)):
        assert sum(metadata[name] for metadata in read) == number
    assert all(isinstance(metadata["snapshot_at"], float) for metadata in read)


def test_trajectories_metadata_counts_executions_and_outcomes(day: Day) -> None:
    made = materializations(day.instance, "trajectories")
    busiest = max(made.values(), key=lambda metadata: metadata["runs_in"])
    assert busiest["runs_in"] == busiest["trajectories"] + busiest["quarantined"]
    assert busiest["postgres"] == f"{busiest['runs_in']} inserted, 0 updated, 0 unchanged, 0 removed"
    for name, heading in (("execution", "execution"), ("heuristic_outcome", "outcome")):
        head, line, *rows = busiest[name].splitlines()
        assert (head, line) == (f"| {heading} | count |", "|---|---|")
        counts = [int(row.split("|")[2]) for row in rows]
        assert counts == sorted(counts, reverse=True)
        assert sum(counts) == busiest["trajectories"]


def test_refined_outcomes_metadata_has_judge_and_cost(day: Day) -> None:
    made = materializations(day.instance, "refined_outcomes")
    busy = [metadata for metadata in made.values() if metadata["calls"]]
    assert busy
    assert {metadata["judge"] for metadata in busy} == {
        "simulated-judge (simulated: not a model, and its prices are not real)"
    }
    assert sum(metadata["cost_usd"] for metadata in made.values()) == pytest.approx(
        float(
            query(str(day.settings.storage.database_url), "SELECT sum(cost_usd) FROM trajectory.verdict_attempts")[0][0]
        )
    )


@pytest.mark.parametrize("asset", IN_PARQUET)
def test_preview_and_queries_read_the_partition(day: Day, asset: str) -> None:
    for key, metadata in materializations(day.instance, asset).items():
        rows = metadata["dagster/partition_row_count"]
        assert ("preview" in metadata, "query" in metadata) == (bool(rows), bool(rows))
        if not rows:
            continue
        assert len(metadata["preview"].splitlines()) == 2 + min(rows, 5)
        queries = dict(re.findall(r"(\w+):\n```sql\n(.+?)\n```", metadata["query"]))
        assert len(duckdb.sql(queries["DuckDB"]).fetchall()) == rows
        if asset != "terminal_runs":
            assert key in queries["Postgres"]
            assert len(query(str(day.settings.storage.database_url), queries["Postgres"])) == rows


def test_trajectories_metadata_sums_tokens_and_cost(day: Day) -> None:
    made = materializations(day.instance, "trajectories").values()
    stored = query(
        str(day.settings.storage.database_url),
        "SELECT sum(input_tokens), sum(output_tokens), sum(cost_usd) FROM trajectory.trajectories",
    )[0]
    for name, total in zip(("input_tokens", "output_tokens", "cost_usd"), stored, strict=True):
        assert sum(metadata.get(name, 0) for metadata in made) == pytest.approx(float(total or 0))


def test_refined_outcomes_metadata_counts_tokens_and_rows_in(day: Day) -> None:
    made = materializations(day.instance, "refined_outcomes").values()
    tokens = query(
        str(day.settings.storage.database_url),
        "SELECT sum(input_tokens), sum(output_tokens) FROM trajectory.verdict_attempts",
    )[0]
    assert tokens == (sum(one["input_tokens"] for one in made), sum(one["output_tokens"] for one in made))
    assert all(one["trajectories_in"] == one["dagster/partition_row_count"] for one in made)


def test_materialization_event_stays_below_eight_kilobytes(day: Day) -> None:
    events = day.instance.all_logs(day.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert max(len(serialize_value(event)) for event in events) < 8_000


def test_range_run_records_its_checks(day: Day) -> None:
    found = check_evaluations(day.instance, day.run_id)
    assert {name: check.passed for name, check in found.items()} == {
        "no_failed_embeddings": True,
        "row_counts_match": True,
        "no_quarantined_runs": True,
        "no_failed_verdicts": True,
        "no_abandoned_verdicts": True,
        "cost_is_under_cap": True,
        "schema_is_as_declared": True,
        "run_ids_are_unique": True,
    }
    assert found["row_counts_match"].description == "24 partitions with equal counts in raw rows, Parquet and Postgres"
    totals = [line.split("|")[2:5] for line in found["row_counts_match"].metadata["counts"].value.splitlines()[2:]]
    assert len({tuple(side) for side in totals}) == 1
    assert int(totals[0][0]) == sum(number for hour, number in sample_partitions().items() if hour in day.hours)


def test_events_hold_no_transcript_and_no_secret(day: Day) -> None:
    logged = "\n".join(serialize_value(entry) for entry in day.instance.all_logs(day.run_id))
    passwords = {
        url.split("@")[0].rpartition(":")[2]
        for url in (day.settings.source.postgres_url, day.settings.storage.database_url)
        if url
    }
    for secret in (*passwords, API_KEY):
        assert secret not in logged
    contents = query(
        str(day.settings.source.postgres_url),
        "SELECT DISTINCT part ->> 'text' FROM messages, json_array_elements(content) part"
        " WHERE json_typeof(content) = 'array' AND length(part ->> 'text') > 20 AND role IN ('user', 'assistant')",
    )
    assert len(contents) > 50
    assert [text for (text,) in contents if json.dumps(text)[1:-1] in logged] == []


def test_materializing_again_changes_nothing_and_makes_no_call(
    day: Day, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    first, last = busy_hours[0], busy_hours[1]
    assert run(day.settings, instance, first, last).success
    for asset in ASSETS[:2]:
        assert {metadata["rewritten"] for metadata in materializations(instance, asset).values()} == {False}
    for metadata in materializations(instance, "trajectories").values():
        assert metadata["postgres"] == f"0 inserted, 0 updated, {metadata['runs_in']} unchanged, 0 removed"
    for metadata in materializations(instance, "refined_outcomes").values():
        assert (metadata["calls"], metadata["judged"]) == (0, 0)


# ---- one partition --------------------------------------------------------------------------------------------------


def test_single_partition_run_materializes_it_alone(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    hour = busy_hours[1]
    result = run(judged, instance, hour)
    assert result.success
    runs = sample_partitions()[hour]
    for asset in IN_PARQUET:
        assert {
            key: value["dagster/partition_row_count"] for key, value in materializations(instance, asset).items()
        } == {partition_key(hour): runs}
    assert query(str(judged.storage.database_url), "SELECT DISTINCT partition_key FROM trajectory.trajectories") == [
        (partition_key(hour),)
    ]
    assert all(check.passed for check in check_evaluations(instance, result.run_id).values())


def test_hour_without_runs_is_materialized_empty(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    quiet = next(hour for hour in hours_from(busy_hours[0], 200) if hour not in busy_hours)
    assert run(settings, instance, quiet, assets=CAPTURE).success
    for asset in CAPTURE:
        assert materializations(instance, asset)[partition_key(quiet)]["dagster/partition_row_count"] == 0


def test_resource_overrides_win_over_the_environment(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster makes configurable resources anew for each run: settings kept in one were lost, and a run of the tests
    wrote to whatever the environment named."""
    for name in ("LETTA_PG_URI", "TRAJECTORY_DATABASE_URL", "DAGSTER_PG_URL"):
        monkeypatch.setenv(name, "postgresql://nobody:nothing@127.0.0.1:1/nowhere")
    assert run(settings, instance, busy_hours[0], assets=CAPTURE).success


# ---- without a judge, or with a bad one -----------------------------------------------------------------------------


def test_refined_outcomes_without_judge_fails_with_what_to_set(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    result = run(settings, instance, busy_hours[0], busy_hours[1])
    assert not result.success
    failure = step_failure(instance, result.run_id, "refined_outcomes")
    assert failure.description == (
        "No judge is configured: set TRAJECTORY_JUDGE_MODEL (and OPENAI_API_KEY, or OPENAI_BASE_URL for your own"
        " server)."
    )
    assert set(materializations(instance, "trajectories")) >= {
        partition_key(busy_hours[0]),
        partition_key(busy_hours[1]),
    }


def test_refined_outcomes_with_refusal_warns_with_its_count(
    judged: Settings, judge: SimulatedJudge, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    judge.plan_faults([{"fault": "refusal", "times": 1}])
    result = run(judged, instance, busy_hours[0])
    assert result.success
    check = check_evaluations(instance, result.run_id)["no_failed_verdicts"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == "1 verdict failed"
    assert check.metadata["errors"].value == "| error_class | count |\n|---|---|\n| refused | 1 |"


# ---- what cannot be converted ---------------------------------------------------------------------------------------


def test_trajectories_with_quarantined_run_warns_and_succeeds(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    [(run_id,)] = query(
        str(settings.source.postgres_url),
        "SELECT min(r.id) FROM runs r JOIN messages m ON m.run_id = r.id WHERE r.status = 'completed'"
        " AND date_trunc('hour', r.completed_at) = %s",
        [busy_hours[0].replace(tzinfo=None)],
    )
    execute(str(settings.source.postgres_url), f"UPDATE messages SET content = '17' WHERE run_id = '{run_id}'")
    result = run(settings, instance, busy_hours[0], assets=CAPTURE)
    assert result.success
    check = check_evaluations(instance, result.run_id)["no_quarantined_runs"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description == "1 run quarantined"
    assert run_id in check.metadata["runs"].value
    assert check_evaluations(instance, result.run_id)["row_counts_match"].passed
    metadata = materializations(instance, "trajectories")[partition_key(busy_hours[0])]
    assert metadata["quarantined"] == 1
    assert metadata["quarantined_runs"].startswith(f"- `{run_id}: messages[")


# ---- what is lost between -------------------------------------------------------------------------------------------


def test_trajectories_with_lost_row_stops_downstream(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    """A sink that loses a row as the partition is committed: it is seen by counting, not by what was meant."""
    execute(
        str(judged.storage.database_url),
        "CREATE FUNCTION lose_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM trajectory.trajectories"
        " WHERE run_id = (SELECT min(run_id) FROM trajectory.trajectories WHERE partition_key = NEW.partition_key);"
        " RETURN NULL; END $$",
        "CREATE TRIGGER lose_one AFTER INSERT ON trajectory.partitions FOR EACH ROW"
        " WHEN (NEW.asset = 'trajectories') EXECUTE FUNCTION lose_one()",
    )
    result = run(judged, instance, busy_hours[0])
    assert not result.success
    check = check_evaluations(instance, result.run_id)["row_counts_match"]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    runs = sample_partitions()[busy_hours[0]]
    assert f"{partition_key(busy_hours[0])}: {runs} runs in the raw rows, {runs - 1} in Postgres" in check.description
    assert started_steps(instance, result.run_id) == set(CAPTURE)
    assert materializations(instance, "refined_outcomes") == {}


# ---- a range with a bad partition -----------------------------------------------------------------------------------


def test_range_with_missing_raw_rows_fails_that_partition_only(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    hours = hours_from(busy_hours[0], 4)
    for hour in (hours[0], hours[1], hours[3]):
        assert run(judged, instance, hour, assets=["terminal_runs"]).success
    result = run(judged, instance, hours[0], hours[-1], assets=ASSETS[1:])
    assert not result.success
    failure = step_failure(instance, result.run_id, "trajectories")
    assert failure.description.startswith(
        f"1 of 4 partitions failed; the others are done. Failed: {partition_key(hours[2])}. First,"
        f" {partition_key(hours[2])}: There"
        f" are no raw rows of {partition_key(hours[2])} in {judged.storage.parquet_location}"
    )
    assert failure.metadata["failed_partitions"].value.startswith(
        f"- `{partition_key(hours[2])}`: There are no raw rows"
    )
    good = {partition_key(hour) for hour in hours} - {partition_key(hours[2])}
    assert set(materializations(instance, "trajectories")) == good
    assert (
        materializations(instance, "trajectories")[partition_key(hours[0])]["runs_in"] == sample_partitions()[hours[0]]
    )
    assert started_steps(instance, result.run_id) == {"trajectories"}
    found = check_evaluations(instance, result.run_id)
    assert {name: check.passed for name, check in found.items()} == {
        "row_counts_match": True,
        "no_quarantined_runs": True,
        "schema_is_as_declared": True,
        "run_ids_are_unique": True,
    }
    assert found["row_counts_match"].description == "3 partitions with equal counts in raw rows, Parquet and Postgres"


@dataclass(frozen=True)
class FailingSource:
    """The real source, but for the runs of some hours."""

    source: LettaSource
    errors: dict[datetime, BaseException]

    @contextmanager
    def pooled(self) -> Iterator[Any]:
        with self.source.pooled() as session:
            yield FailingSource(session, self.errors)

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        with self.source.snapshot() as snapshot:
            yield _FailingSnapshot(snapshot, self.errors)


class _FailingSnapshot:
    def __init__(self, snapshot: Snapshot, errors: dict[datetime, BaseException]) -> None:
        self._snapshot, self._errors = snapshot, errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)

    @contextmanager
    def prefetch_terminal_runs(self, start: datetime, end: datetime, only: Any = None) -> Iterator[Iterator[Any]]:
        with self._snapshot.prefetch_terminal_runs(start, end, only) as batches:
            yield self._failing_at_the_end(batches, start)

    def _failing_at_the_end(self, batches: Iterator[Any], start: datetime) -> Iterator[Any]:
        yield from batches
        if start in self._errors:
            raise self._errors[start]


@dataclass(frozen=True)
class FailingSources:
    """A resource with a source that fails for some hours."""

    settings: Settings
    errors: dict[datetime, BaseException]

    def source(self, _: str) -> Any:
        return FailingSource(LettaSource(str(self.settings.source.postgres_url)), self.errors)


def test_range_with_source_error_materializes_the_others(settings: Settings, instance: dg.DagsterInstance) -> None:
    hours = hours_from(BUSY[0], 4)
    broken = FailingSources(
        settings, {hours[1]: SourceError("Reading steps failed at the source db:5432/letta: gone.")}
    )
    result = run(settings, instance, hours[0], hours[-1], assets=CAPTURE, resources={"sources": broken})
    assert not result.success
    message = step_failure(instance, result.run_id, "terminal_runs").description
    assert message == (
        f"1 of 4 partitions failed; the others are done. Failed: {partition_key(hours[1])}. First,"
        f" {partition_key(hours[1])}: Reading"
        " steps failed at the source db:5432/letta: gone."
    )
    assert set(materializations(instance, "terminal_runs")) == {partition_key(hour) for hour in hours} - {
        partition_key(hours[1])
    }
    assert started_steps(instance, result.run_id) == {"terminal_runs"}
    assert query(str(settings.storage.database_url), "SELECT count(*) FROM trajectory.partitions") == [(3,)]
    # Nothing half-written stays behind.
    assert list((settings.storage.data_folder / "parquet").rglob(".*")) == []


def test_range_with_unexpected_error_keeps_others_and_traceback(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    hours = hours_from(busy_hours[0], 3)
    broken = FailingSources(settings, {hours[0]: ZeroDivisionError("division by zero")})
    result = run(settings, instance, hours[0], hours[-1], assets=CAPTURE, resources={"sources": broken})
    message = step_failure(instance, result.run_id, "terminal_runs").description
    assert "unexpected ZeroDivisionError, a bug in the pipeline: please report it" in message
    assert set(materializations(instance, "terminal_runs")) == {partition_key(hour) for hour in hours[1:]}
    [entry] = [
        entry
        for entry in instance.all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        if entry.step_key == "terminal_runs"
    ]
    assert "ZeroDivisionError" in entry.dagster_event.event_specific_data.error.to_string()


def test_range_with_every_partition_failing_reports_none_done(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    result = run(settings, instance, busy_hours[0], busy_hours[1], assets=["trajectories"])
    message = step_failure(instance, result.run_id, "trajectories").description
    number = round((busy_hours[1] - busy_hours[0]).total_seconds() / 3600) + 1
    assert message.startswith(
        f"All {number} partitions failed. First, {partition_key(busy_hours[0])}: There are no raw rows of"
    )


def test_single_partition_failure_is_its_reason_alone(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    result = run(settings, instance, busy_hours[0], assets=["trajectories"])
    message = step_failure(instance, result.run_id, "trajectories").description
    assert message.startswith(f"There are no raw rows of {partition_key(busy_hours[0])} in ")


def test_terminated_run_records_what_is_done(settings: Settings, instance: dg.DagsterInstance) -> None:
    hours = hours_from(BUSY[0], 3)
    broken = FailingSources(settings, {hours[2]: KeyboardInterrupt()})
    assert not run(settings, instance, hours[0], hours[-1], assets=CAPTURE, resources={"sources": broken}).success
    assert set(materializations(instance, "terminal_runs")) == {partition_key(hour) for hour in hours[:2]}


def test_range_run_logs_its_progress(day: Day) -> None:
    messages = log_messages(day.instance, day.run_id)
    last = [line for line in messages if line.startswith("24 of 24 partitions in ")]
    assert [line.rpartition(" ")[2] for line in last] == [partition_key(day.hours[-1]).rpartition(" ")[2]] * len(ASSETS)


def test_range_run_writes_a_constant_number_of_other_events(
    settings: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime]
) -> None:
    a_partition = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED}
    event_counts = []
    for partitions in (2, 6):
        hours = hours_from(busy_hours[0], partitions)
        entries = instance.all_logs(run(settings, instance, hours[0], hours[-1], assets=CAPTURE).run_id)
        kinds = Counter(entry.dagster_event_type for entry in entries)
        assert {kinds.pop(kind) for kind in a_partition} == {len(CAPTURE) * partitions}
        event_counts.append(kinds)
    assert event_counts[0] == event_counts[1]
    # One log line each; a long range logs its progress by the clock.
    assert event_counts[0][None] == len(CAPTURE)


def test_run_warns_of_prompts_that_the_server_cut(
    judged: Settings, instance: dg.DagsterInstance, busy_hours: list[datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "share_read", lambda text, counted: 0.25)
    result = run(judged, instance, busy_hours[0])
    assert result.success
    (warning,) = [text for text in log_messages(instance, result.run_id) if "did not read" in text]
    assert re.search(r"did not read [1-9]\d* of its prompts to their end: raise its context length, or lower", warning)
