"""The command ``doctor``: tries what the pipeline will do, rolls it back, and says what to do about what fails."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click

from trajectory_pipeline.cli.connections import Connections, open_connections
from trajectory_pipeline.cli.console import out
from trajectory_pipeline.databases import require_dagster_driver
from trajectory_pipeline.defs.sensors.capture import RECENT
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.judge.config import OPENAI_URL
from trajectory_pipeline.letta.rehearsal import find_unreadable_tables
from trajectory_pipeline.letta.run_counts import count_runs_by_hour, find_end_index, find_stuck_runs
from trajectory_pipeline.letta.snapshot import Snapshot
from trajectory_pipeline.partition_keys import HOUR, floor_to_hour, partition_key
from trajectory_pipeline.pipeline.configured_models import build_embedder, judge_config
from trajectory_pipeline.pipeline.stale_partitions import built_by_older_versions
from trajectory_pipeline.schema.enums import JudgeMode
from trajectory_pipeline.storage.postgres.capture_lag import lag_since
from trajectory_pipeline.storage.postgres.export_registry import stale_exports
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.pgvector import find_pgvector
from trajectory_pipeline.storage.postgres.rehearsal import find_refused_statements
from trajectory_pipeline.storage.postgres.sources import accepted_source
from trajectory_pipeline.storage.postgres.summaries import database_state
from trajectory_pipeline.text import pluralize
from trajectory_pipeline.urls import describe_postgres, without_credentials

_SLOW_SECONDS = 1.0


_OK, _ADVICE, _WRONG = ("✓", "green"), ("•", "yellow"), ("✗", "red")
"""Advice: it works, and could be better. Wrong: it cannot work."""


class _Finding(NamedTuple):
    subject: str
    text: str
    mark: tuple[str, str] = _OK


@click.command("doctor")
def command() -> None:
    """Try what the pipeline will do, and say what to do about what fails. Keeps no change and calls no judge.

    \b
    Exit code 0  everything can work
              1  something cannot
    """  # noqa: D301 - \b keeps click from rewrapping the text
    wrong = False
    for finding in _findings():
        mark, style = finding.mark
        out.print(mark, style=style, end=" ")
        out.print(finding.subject, style="bold", end=": ")
        out.print(finding.text)
        wrong = wrong or finding.mark == _WRONG
    sys.exit(1 if wrong else 0)


def _findings() -> Iterator[_Finding]:
    try:
        opened = open_connections()
    except PipelineError as error:
        yield _Finding("settings", str(error), _WRONG)
        return
    yield _Finding("settings", "all settings are valid")
    try:
        require_dagster_driver()
    except PipelineError as error:
        yield _Finding("Dagster's storage", str(error), _ADVICE)
    yield from _until_error("source", _source, opened)
    yield from _until_error("sources", _other_sources, opened)
    yield from _until_error("trajectory database", _database, opened)
    yield from _until_error("source identity", _identity, opened)
    yield from _until_error("Parquet storage", _storage, opened)
    settings = opened.settings
    if settings.judge.disabled_reason:
        yield _Finding("judge", settings.judge.disabled_reason, _ADVICE)
    else:
        yield from _until_error("judge", _judge, opened)
    yield from _until_error("embeddings", _embeddings, opened)
    yield from _until_error("exports", _exports, opened)


def _until_error(
    subject: str, check: Callable[[Connections], Iterator[_Finding]], opened: Connections
) -> Iterator[_Finding]:
    try:
        yield from check(opened)
    except PipelineError as error:
        yield _Finding(subject, str(error), _WRONG)


def _judge(opened: Connections) -> Iterator[_Finding]:
    settings = opened.settings
    config = judge_config(settings.judge, settings.privacy, settings.budget)
    for judge in config.asked:
        yield _Finding("judge", f"{judge.model} at {without_credentials(judge.base_url)}; not called")
    config.require_price()
    if settings.judge.mode == JudgeMode.BATCH:
        config.require_batch_price()


def _embeddings(opened: Connections) -> Iterator[_Finding]:
    settings = opened.settings
    embedding, judge = settings.embedding, settings.judge
    embedder, reason = build_embedder(embedding, judge, settings.privacy, settings.budget)
    if embedder is None:
        yield _Finding("embeddings", reason, _ADVICE)
        return
    with opened.storage.postgres.connect() as connection:
        missing = find_pgvector(connection).missing
    if missing:
        yield _Finding("embeddings", f"{missing}. Until then, search finds words alone", _ADVICE)
        return
    where = "in this process"
    if not embedding.is_local:
        where = f"at {without_credentials(embedding.base_url or judge.base_url or OPENAI_URL)}; not called"
    yield _Finding("embeddings", f"{embedding.model} {where}")
    embedder.require_price()


def _exports(opened: Connections) -> Iterator[_Finding]:
    for sentence in stale_exports(opened.storage.postgres):
        yield _Finding("exports", sentence, _ADVICE)


def _source(opened: Connections) -> Iterator[_Finding]:
    if not opened.has_letta():
        text = "no Letta database is set (LETTA_PG_URI); switch off its sensors in the UI, and use the other sources"
        yield _Finding("source", text, _ADVICE)
        return
    hour = floor_to_hour(datetime.now(UTC))
    refused = find_unreadable_tables(opened.source, hour, hour + HOUR)
    if refused:
        yield from (_Finding("source table", sentence, _WRONG) for sentence in refused)
        return
    with opened.source.snapshot() as snapshot:
        yield _Finding("source", f"{describe_postgres(opened.databases.letta_url)} can be read")
        unknown = snapshot.catalog.unknown_columns
        if unknown:
            yield _Finding("source columns", f"unknown, and not read: {', '.join(unknown)}", _ADVICE)
        yield _runs(snapshot, opened.settings.capture.start)
        yield _index(snapshot)
        yield _comparison_cost(snapshot)
        hours = opened.settings.source.stuck_hours
        stuck = find_stuck_runs(snapshot, timedelta(hours=hours))
        if stuck:
            oldest = max(run.age for run in stuck).total_seconds() / 3600
            text = (
                f"{len(stuck)} have been created or running for more than {hours} hours, the oldest, {stuck[0].run_id},"
                f" for {oldest:.0f}; runs are captured when they end"
            )
            yield _Finding("runs that never ended", text, _ADVICE)


def _other_sources(opened: Connections) -> Iterator[_Finding]:
    for source in opened.others():
        subject = f"source {source.name}"
        try:
            with source.snapshot() as snapshot:
                hours = snapshot.runs_by_hour()
                runs = pluralize(sum(hours.values()), "terminal run")
                where = f"{source.kind}, {snapshot.described}"
                yield _Finding(subject, f"{where}: {runs} in {pluralize(len(hours), 'hour')}")
                for remark in snapshot.remarks:
                    yield _Finding(subject, remark, _ADVICE)
                for column in snapshot.unknown_columns:
                    yield _Finding(subject, f"has {column}, which are not read", _ADVICE)
        except PipelineError as error:
            # The others are tried nevertheless.
            yield _Finding(subject, str(error), _WRONG)


def _runs(snapshot: Snapshot, start: datetime) -> _Finding:
    hours = count_runs_by_hour(snapshot)
    if not hours:
        return _Finding("terminal runs", "there is none at the source: nothing to capture yet", _ADVICE)
    text = (
        f"{sum(hours.values())}, which ended in {pluralize(len(hours), 'hour')} from {partition_key(min(hours))} to"
        f" {partition_key(max(hours))}"
    )
    before = sum(count for hour, count in hours.items() if hour < floor_to_hour(start))
    if not before:
        return _Finding("terminal runs", text)
    return _Finding(
        "terminal runs", f"{text}; {before} before {start:%Y-%m-%d %H:%M} (TRAJECTORY_START) are not captured", _ADVICE
    )


def _index(snapshot: Snapshot) -> _Finding:
    index = find_end_index(snapshot)
    if index.exists:
        return _Finding("index on the end of runs", "there is one")
    text = (
        f"there is none, so finding an hour's runs reads the whole table runs (about {index.runs} rows). The source's"
        f" owner could run: {index.statement}"
    )
    return _Finding("index on the end of runs", text, _ADVICE)


def _comparison_cost(snapshot: Snapshot) -> _Finding:
    now = datetime.now(UTC)
    started = time.monotonic()
    found = snapshot.fingerprints(floor_to_hour(now - RECENT), floor_to_hour(now) + HOUR)
    seconds = time.monotonic() - started
    text = f"comparing the last {RECENT // HOUR} hours ({len(found)} with runs) took {seconds:.2f} s at the source"
    return _Finding("cost of a sensor tick", text, _OK if seconds < _SLOW_SECONDS else _ADVICE)


def _database(opened: Connections) -> Iterator[_Finding]:
    database = opened.storage.postgres
    before, head = migrate(database.url, rehearse=True)
    if before != head:
        found = f"at revision {before}" if before else "not made yet"
        text = f"the schema is {found}: run `trajectory-pipeline migrate`, which this user may do"
        yield _Finding("trajectory database", text, _WRONG)
        return
    refused = find_refused_statements(database)
    if refused:
        yield from (_Finding("trajectory database", sentence, _WRONG) for sentence in refused)
        return
    state = database_state(database)
    text = (
        f"{describe_postgres(database.url)}, migrated, can be written; {state.trajectories} trajectories,"
        f" {state.quarantined} in quarantine"
    )
    yield _Finding("trajectory database", text)
    lag = lag_since(database, timedelta(days=1))
    if lag is not None:
        median, longest = lag.median.total_seconds(), lag.longest.total_seconds()
        text = (
            f"{pluralize(lag.runs, 'run')} in the last day: half were captured within {median:.0f} s of their end, all"
            f" within {longest:.0f} s"
        )
        yield _Finding("capture lag", text)
    older = built_by_older_versions(database)
    if older:
        text = (
            f"{pluralize(len(older), 'partition')} of trajectories, from {older[0]} to {older[-1]}, were built with an"
            " older schema: materialize their trajectories again (a backfill in the UI, or `trajectory-pipeline"
            " materialize --select trajectories`); that reads their raw rows in Parquet, not the source"
        )
        yield _Finding("versions", text, _ADVICE)


def _identity(opened: Connections) -> Iterator[_Finding]:
    if not opened.has_letta():
        return
    database = opened.storage.postgres
    with opened.source.snapshot() as snapshot:
        identity = snapshot.identity
    with database.connect() as connection:
        accepted = accepted_source(database.url, connection)
    if accepted and accepted.identity != identity.text:
        text = (
            f"{identity.text}; runs were captured from {accepted.identity}, so nothing counts as deleted: correct"
            " LETTA_PG_URI, or materialize a partition with --accept-deletions once"
        )
        yield _Finding("source identity", text, _ADVICE)
    elif identity.cluster is None:
        text = (
            f"{identity.text}; which cluster it is cannot be read, so texts of rows are compared instead of their"
            " versions, and a restored copy may pass for the source: GRANT EXECUTE ON FUNCTION pg_control_system(),"
            " pg_control_checkpoint() to the user in LETTA_PG_URI"
        )
        yield _Finding("source identity", text, _ADVICE)
    else:
        yield _Finding("source identity", identity.text)
    withheld = database.withheld_deletions()
    if withheld:
        text = f"in {pluralize(len(withheld), 'partition')}. {next(iter(withheld.values()))}"
        yield _Finding("withheld deletions", text, _WRONG)


def _storage(opened: Connections) -> Iterator[_Finding]:
    opened.storage.parquet.probe()
    yield _Finding("Parquet storage", f"{opened.storage.parquet.shown_uri} can be written")
