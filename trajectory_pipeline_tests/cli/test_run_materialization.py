"""The command ``materialize``: the runs that the UI would start, visible in it, with exit codes for scripts.

0: the sinks are true, quarantined runs and failed verdicts being reported; 1: a partition failed; 2: bad input, and
nothing was begun.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import dagster as dg
import psycopg
import pytest

from trajectory_pipeline.defs.asset_keys import ASSETS
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SimulatedJudge
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.partition_keys import floor_to_hour
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline.urls import sqlalchemy_url
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.defs.dagster_runs import execute, query

Databases = Mapping[str, str]


@contextmanager
def instance_of(databases: Databases) -> Iterator[dg.DagsterInstance]:
    """Dagster's own instance, as the UI would open it."""
    home = Path(databases["TRAJECTORY_DATA_FOLDER"]) / "dagster"
    variables = {"DAGSTER_HOME": str(home), "DAGSTER_PG_URL": sqlalchemy_url(databases["DAGSTER_PG_URL"], "psycopg2")}
    with mock.patch.dict(os.environ, variables), dg.DagsterInstance.get() as instance:
        yield instance


def materialized(databases: Databases) -> dict[str, set[str]]:
    """The partitions of each asset, by the ledger."""
    rows = query(databases["TRAJECTORY_DATABASE_URL"], "SELECT asset, partition_key FROM trajectory.partitions")
    return {asset: {key for name, key in rows if name == asset} for asset in ASSETS}


# ---- what it does ----------------------------------------------------------------------------------------------------


def test_materialize_without_a_judge_skips_refined_outcomes(run_command: Command, databases: Databases) -> None:
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **databases)
    assert result.exit_code == 0, result.output
    assert "Skipping refined_outcomes. No judge is configured: set TRAJECTORY_JUDGE_MODEL" in squeezed(result)
    assert "1 partition: 15 trajectories in 127.0.0.1:" in squeezed(result)
    assert "Warning" not in result.output
    assert materialized(databases) == {
        "terminal_runs": {"2026-11-20-14:00"},
        "trajectories": {"2026-11-20-14:00"},
        "refined_outcomes": set(),
        # Texts alone: words are found without a judge and without an embedding model.
        "trajectory_embeddings": {"2026-11-20-14:00"},
    }
    with instance_of(databases) as instance:
        [run] = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert run.tags["dagster/partition"] == "2026-11-20-14:00"
        assert run.tags["trajectory/reason"] == "command"
        assert instance.get_materialized_partitions(dg.AssetKey("trajectories")) == {"2026-11-20-14:00"}


def test_materialize_range_captures_oldest_judges_newest_first(
    run_command: Command, databases: Databases, judge: SimulatedJudge
) -> None:
    result = run_command(
        *("materialize", "--from", "2026-11-20T16:59:59+01:00", "--to", "2026-11-20T18:00:01"),
        **databases,
        TRAJECTORY_JUDGE_MODEL=JUDGE_MODEL,
        TRAJECTORY_PRICES=PRICE_TABLE,
        OPENAI_BASE_URL=judge.base_url,
        TRAJECTORY_BACKFILL_BATCH=3,
    )
    assert result.exit_code == 0, result.output
    keys = {f"2026-11-20-{hour}:00" for hour in (15, 16, 17, 18)}
    assert materialized(databases) == dict.fromkeys(ASSETS, keys)
    assert "4 partitions: 4 trajectories" in squeezed(result)
    assert "Verdicts: " in result.output
    # All are captured, the oldest first, before any is judged; then judged from the newest on.
    oldest, newest = "2026-11-20-15:00", "2026-11-20-18:00"
    with instance_of(databases) as instance:
        runs = sorted(instance.get_runs(), key=lambda run: instance.get_run_record_by_id(run.run_id).create_timestamp)
        first = [run.tags.get("dagster/partition") or run.tags["dagster/asset_partition_range_start"] for run in runs]
        judging = [dg.AssetKey("refined_outcomes") in (run.asset_selection or ()) for run in runs]
    assert list(zip(first, judging, strict=True)) == [
        (oldest, False),
        (newest, False),
        (newest, True),
        (oldest, True),
    ]


def read(settings: Settings, *hours: int) -> None:
    """Read raw rows of these hours of the 20th."""
    source = LettaSource(str(settings.source.postgres_url))
    storage = Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))
    for hour in hours:
        moment = datetime(2026, 11, 20, hour, tzinfo=UTC)
        materialize_terminal_runs(moment, source, storage)


def test_materialize_select_runs_only_the_selected_assets(run_command: Command, databases: Databases) -> None:
    selected = ("--select", "terminal_runs", "--partition", "2026-11-20-15:00")
    assert run_command("materialize", *selected, **databases).exit_code == 0
    assert materialized(databases)["trajectories"] == set()
    selected = ("--select", "trajectories", "--partition", "2026-11-20-15:00")
    # Without the source, which it does not need.
    without_source = {**databases, "LETTA_PG_URI": "postgresql://nobody@127.0.0.1:1/letta"}
    assert run_command("materialize", *selected, **without_source).exit_code == 0
    assert materialized(databases)["trajectories"] == {"2026-11-20-15:00"}


def test_materialize_with_quarantined_run_reports_it_and_exits_0(run_command: Command, databases: Databases) -> None:
    execute(
        databases["LETTA_PG_URI"],
        "UPDATE messages SET content = '17' WHERE run_id = 'run-cf98e248-4343-45de-aafa-b31638337682'",
    )
    result = run_command("materialize", "--partition", "2026-11-20-16:00", **databases)
    assert result.exit_code == 0
    assert "Quarantined: run-cf98e248-4343-45de-aafa-b31638337682: messages[" in squeezed(result)


def test_materialize_with_failed_verdict_reports_it_and_exits_0(
    run_command: Command, databases: Databases, judge: SimulatedJudge
) -> None:
    judge.plan_faults([{"fault": "refusal", "times": 1}])
    result = run_command(
        *("materialize", "--partition", "2026-11-20-16:00"),
        **databases,
        TRAJECTORY_JUDGE_MODEL=JUDGE_MODEL,
        TRAJECTORY_PRICES=PRICE_TABLE,
        OPENAI_BASE_URL=judge.base_url,
    )
    assert result.exit_code == 0, result.output
    assert "Verdicts: 1 failed refused." in squeezed(result)


# ---- a partition that fails ------------------------------------------------------------------------------------------


def test_materialize_with_bad_partition_judges_the_others(
    run_command: Command, databases: Databases, settings: Settings, judge: SimulatedJudge
) -> None:
    """Dagster would judge none of the range: what is downstream of a failed step is not run."""
    hours = ("--from", "2026-11-20T15:00", "--to", "2026-11-20T18:00")
    read(settings, 15, 16, 17)
    raw = Path(databases["TRAJECTORY_DATA_FOLDER"]) / "parquet" / "terminal_runs" / "hour=2026-11-20T16"
    (raw / "part-0.parquet").write_bytes(b"no parquet")
    result = run_command(
        *("materialize", *hours, "--select", "trajectories", "--select", "refined_outcomes"),
        **databases,
        TRAJECTORY_JUDGE_MODEL=JUDGE_MODEL,
        TRAJECTORY_PRICES=PRICE_TABLE,
        OPENAI_BASE_URL=judge.base_url,
    )
    assert result.exit_code == 1
    message = squeezed(result)
    assert "trajectories: 1 of 3 partitions failed; the others are done. Failed: 2026-11-20-16:00. First," in message
    good = {"2026-11-20-15:00", "2026-11-20-17:00"}
    assert materialized(databases)["trajectories"] == materialized(databases)["refined_outcomes"] == good


def test_materialize_with_failed_check_judges_nothing(
    run_command: Command, databases: Databases, judge: SimulatedJudge
) -> None:
    execute(
        databases["TRAJECTORY_DATABASE_URL"],
        "CREATE FUNCTION lose_one() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM trajectory.trajectories"
        " WHERE run_id = (SELECT min(run_id) FROM trajectory.trajectories WHERE partition_key = NEW.partition_key);"
        " RETURN NULL; END $$",
        "CREATE TRIGGER lose_one AFTER INSERT ON trajectory.partitions FOR EACH ROW"
        " WHEN (NEW.asset = 'trajectories') EXECUTE FUNCTION lose_one()",
    )
    result = run_command(
        *("materialize", "--from", "2026-11-20T15:00", "--to", "2026-11-20T17:00"),
        **databases,
        TRAJECTORY_JUDGE_MODEL=JUDGE_MODEL,
        TRAJECTORY_PRICES=PRICE_TABLE,
        OPENAI_BASE_URL=judge.base_url,
    )
    assert result.exit_code == 1
    assert "row_counts_match" in squeezed(result)
    assert materialized(databases)["refined_outcomes"] == set()


# ---- bad input -------------------------------------------------------------------------------------------------------

NEXT_HOUR = floor_to_hour(datetime.now(UTC)) + timedelta(hours=2)

BAD: list[tuple[tuple[str, ...], str]] = [
    ((), "Select partitions with --partition KEY, or with --from TIME --to TIME."),
    (("--from", "2026-11-20"), "Select partitions with --partition KEY, or with --from TIME --to TIME."),
    (
        ("--partition", "2026-11-20-14:00", "--to", "2026-11-21"),
        "Give either --partition or --from and --to, not both.",
    ),
    (
        ("--partition", "2026-11-20"),
        "'2026-11-20' is no partition key: a key is a UTC hour written as YYYY-MM-DD-HH:00",
    ),
    (("--partition", "2026-11-20-14:30"), "is no partition key"),
    (("--partition", "2026-11-20-24:00"), "is no partition key"),
    (("--partition", "../../etc/passwd"), "is no partition key"),
    (("--partition", "2024-12-31-23:00"), "is before the first partition, 2025-01-01-00:00: set TRAJECTORY_START"),
    (("--partition", f"{NEXT_HOUR:%Y-%m-%d-%H:00}"), "is in the future: the last partition is the open hour"),
    (("--from", "2026-11-20", "--to", f"{NEXT_HOUR:%Y-%m-%dT%H:30}"), "is in the future"),
    (("--from", "2026-11-20", "--to", "2026-11-20"), "The range is empty: --to must be after --from."),
    (("--from", "2026-11-21", "--to", "2026-11-20"), "The range is empty: --to must be after --from."),
    (("--from", "2026-11-20T10:00+01:00", "--to", "2026-11-20T09:00Z"), "The range is empty"),
    (("--from", "noon", "--to", "2026-11-20"), "'noon' is no time: write it as 2026-11-21"),
    (("--from", "0001-01-01T00:00+14:00", "--to", "2026-11-20"), "is no time"),
    (("--from", "1990-01-01", "--to", "2026-11-20"), "The range is longer than twenty years: check --from and --to."),
    (
        ("--from", "9999-12-31T22:00", "--to", "9999-12-31T23:59"),
        "--to is '9999-12-31T23:59', which is after the last supported year: check --to.",
    ),
    (("--partition", "2026-11-20-14:00", "--select", "trajectory"), "'trajectory' is not one of 'terminal_runs'"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_materialize_with_bad_input_exits_2_before_any_work(
    run_command: Command, arguments: tuple[str, ...], words: str
) -> None:
    """No database is set: the command would report that first if it looked for one."""
    result = run_command("materialize", *arguments)
    assert result.exit_code == 2
    assert words in squeezed(result)
    assert not list(Path.cwd().iterdir())


def test_materialize_select_outcomes_without_judge_exits_2(run_command: Command, databases: Databases) -> None:
    chosen = ("materialize", "--partition", "2026-11-20-14:00", "--select", "refined_outcomes")
    result = run_command(*chosen, **databases)
    assert result.exit_code == 2
    assert "No judge is configured: set TRAJECTORY_JUDGE_MODEL" in squeezed(result)
    result = run_command(*chosen, **databases, TRAJECTORY_JUDGE_MODEL="gpt-5")
    assert result.exit_code == 2
    assert "The judge has no key: set OPENAI_API_KEY" in squeezed(result)


@pytest.mark.parametrize("name", ["LETTA_PG_URI", "TRAJECTORY_DATABASE_URL", "DAGSTER_PG_URL"])
def test_materialize_with_unreachable_database_hides_password(
    run_command: Command, databases: Databases, name: str
) -> None:
    url = "postgresql://me:hunter2@127.0.0.1:1/there"
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **{**databases, name: url})
    assert result.exit_code == 2
    message = squeezed(result)
    assert "127.0.0.1:1/there" in message
    assert name in message
    assert "hunter2" not in message
    assert materialized(databases)["terminal_runs"] == set() if name != "TRAJECTORY_DATABASE_URL" else True


@pytest.mark.parametrize("name", ["LETTA_PG_URI", "TRAJECTORY_DATABASE_URL", "DAGSTER_PG_URL"])
def test_materialize_with_wrong_password_names_the_setting(
    run_command: Command, databases: Databases, name: str
) -> None:
    login, _, address = databases[name].rpartition("@")
    url = f"{login.rpartition(':')[0]}:hunter2@{address}"
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **{**databases, name: url})
    assert result.exit_code == 2
    message = squeezed(result)
    assert "password" in message
    assert name in message
    assert "hunter2" not in message


def test_materialize_without_schema_says_to_run_migrate(
    run_command: Command, databases: Databases, empty_database: str
) -> None:
    changed = {**databases, "TRAJECTORY_DATABASE_URL": empty_database}
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **changed)
    assert result.exit_code == 2
    assert "has no schema 'trajectory' yet: run `trajectory-pipeline migrate`." in squeezed(result)


def test_materialize_with_foreign_source_names_letta(
    run_command: Command, databases: Databases, empty_database: str
) -> None:
    changed = {**databases, "LETTA_PG_URI": empty_database}
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **changed)
    assert result.exit_code == 2
    assert "is it the database of a Letta server" in squeezed(result)


def test_materialize_with_invalid_dagster_home_exits_2(
    run_command: Command, databases: Databases, tmp_path: Path
) -> None:
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **databases, DAGSTER_HOME=tmp_path)
    assert result.exit_code == 2
    assert "is not the absolute path of a folder with a dagster.yaml: copy" in squeezed(result)


def test_materialize_with_unwritable_data_folder_exits_2(
    run_command: Command, databases: Databases, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    changed = {**databases, "TRAJECTORY_DATA_FOLDER": str(blocked)}
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **changed)
    assert result.exit_code == 2
    assert "Set TRAJECTORY_DATA_FOLDER to a folder that this user owns." in squeezed(result)


def test_materialize_with_lost_table_fails_without_traceback(
    run_command: Command, databases: Databases, make_database: Callable[[str | None], str]
) -> None:
    """From the first write on, the sink refuses: nothing but sentences is printed, by the progress bar neither."""
    with psycopg.connect(databases["TRAJECTORY_DATABASE_URL"]) as connection:
        connection.execute("ALTER TABLE trajectory.partitions RENAME TO gone")
    result = run_command("materialize", "--partition", "2026-11-20-14:00", **databases)
    assert result.exit_code in (1, 2)
    assert "partitions" in squeezed(result)


# ---- credentials -----------------------------------------------------------------------------------------------------


def test_doctor_names_the_driver_that_plain_dagster_processes_need(run_command: Command, databases: Databases) -> None:
    needed = "DAGSTER_PG_URL must begin with postgresql+psycopg2:// for Dagster's webserver"
    assert needed in squeezed(run_command("doctor", **databases))
    with_driver = sqlalchemy_url(databases["DAGSTER_PG_URL"], "psycopg2")
    assert needed not in squeezed(run_command("doctor", **{**databases, "DAGSTER_PG_URL": with_driver}))


@pytest.mark.parametrize(
    "uri", ["nosuch://me:hunter2@host/x", "s3://hunter2:ab/cd@bucket/x", "http://127.0.0.1:1/c?sig=hunter2"]
)
def test_credentials_of_the_storage_reach_no_output(run_command: Command, databases: Databases, uri: str) -> None:
    with_login = {**databases, "TRAJECTORY_STORAGE_URI": uri}
    outputs = [run_command("doctor", **with_login), run_command("check", **with_login)]
    outputs.append(run_command("materialize", "--partition", "2026-11-20-14:00", **with_login))
    assert outputs[-1].exit_code == 1
    assert [result.output for result in outputs if "hunter2" in result.output] == []
    for table, column in (("event_logs", "event"), ("runs", "run_body")):
        counts = f"SELECT count(*) > 0, count(*) FILTER (WHERE strpos({column}, 'hunter2') > 0) FROM {table}"
        assert query(databases["DAGSTER_PG_URL"], counts) == [(True, 0)]
