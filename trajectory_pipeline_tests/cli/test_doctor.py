"""The command ``doctor``: tries what the pipeline will do, keeps no change, and names the one thing that is missing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_FOLDER, LETTA_CODE_NAME, LETTA_CODE_SOURCE
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.defs.dagster_runs import execute, query
from trajectory_pipeline_tests.marks import some_heavy

Databases = Mapping[str, str]
STATE = (
    "SELECT (SELECT string_agg(relname::text || relkind::text, ',' ORDER BY relname) FROM pg_class"
    " WHERE relnamespace::regnamespace::text = 'trajectory'), (SELECT count(*) FROM pg_locks WHERE locktype='advisory')"
)


@pytest.fixture
def role(databases: Databases) -> Iterator[str]:
    """A user with an odd name who may do all that the pipeline needs, in source and sink, and owns nothing."""
    name = f'Me "{uuid4().hex[:8]}'
    quoted = quote(name)
    execute(databases["LETTA_PG_URI"], f"CREATE ROLE {quoted} LOGIN PASSWORD 'pw'")
    execute(databases["LETTA_PG_URI"], f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {quoted}")
    execute(
        databases["TRAJECTORY_DATABASE_URL"],
        f"GRANT USAGE ON SCHEMA trajectory TO {quoted}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA trajectory TO {quoted}",
    )
    yield quoted
    for url in (databases["LETTA_PG_URI"], databases["TRAJECTORY_DATABASE_URL"]):
        execute(url, f"DROP OWNED BY {quoted}")
    execute(databases["LETTA_PG_URI"], f"DROP ROLE {quoted}")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def as_role(databases: Databases, role: str) -> dict[str, str]:
    """The variables with this user in place of the owner."""
    user = role[1:-1].replace('""', '"').replace(" ", "%20").replace('"', "%22")
    changed = {}
    for name in ("LETTA_PG_URI", "TRAJECTORY_DATABASE_URL"):
        parts = urlsplit(databases[name])
        changed[name] = f"postgresql://{user}:pw@{parts.hostname}:{parts.port}{parts.path}"
    return {**databases, **changed}


def test_doctor_with_the_documented_rights_is_green_and_changes_nothing(
    run_command: Command, databases: Databases, role: str
) -> None:
    before = query(databases["TRAJECTORY_DATABASE_URL"], STATE)
    result = run_command("doctor", **as_role(databases, role))
    assert result.exit_code == 0, result.output
    assert "migrated, can be written" in squeezed(result)
    assert "embeddings: No embedding model is configured, so that search finds words alone" in squeezed(result)
    assert query(databases["TRAJECTORY_DATABASE_URL"], STATE) == before
    assert list(Path(databases["TRAJECTORY_DATA_FOLDER"]).glob("parquet*")) == []


def test_doctor_tries_each_source_and_says_of_one_that_is_gone_what_to_do(
    run_command: Command, databases: Databases, tmp_path: Path
) -> None:
    gone = f"gone=letta_code:{tmp_path}/gone; unplugged=atif:{tmp_path}/unplugged"
    result = run_command("doctor", **databases, TRAJECTORY_SOURCES=f"{gone}; {LETTA_CODE_SOURCE}")
    said = squeezed(result)
    assert result.exit_code == 1
    assert f"There is no folder conversations in {tmp_path}/gone: is the disk there" in said
    assert f"There is no folder {tmp_path}/unplugged: is the disk or bucket there" in said
    assert all(f"TRAJECTORY_SOURCES ({name}) right?" in said for name in ("gone", "unplugged"))
    # The one that is there is read nevertheless.
    assert f"source {LETTA_CODE_NAME}: letta_code, {LETTA_CODE_FOLDER}: 3 terminal runs in 1 hour" in said


def test_doctor_says_what_embeddings_need(run_command: Command, databases: Databases) -> None:
    local = {**databases, "TRAJECTORY_EMBEDDING_MODEL": "wordllama"}
    assert "embeddings: wordllama in this process" in squeezed(run_command("doctor", **local))
    execute(
        databases["TRAJECTORY_DATABASE_URL"],
        "DROP EXTENSION vector CASCADE",
        "DROP TABLE trajectory.trajectory_embeddings",
    )
    result = run_command("doctor", **local)
    assert result.exit_code == 0
    assert "run `CREATE EXTENSION vector` there" in squeezed(result)


@pytest.mark.parametrize(
    ("subject", "setting"), [("judge", "TRAJECTORY_JUDGE_MODEL"), ("embeddings", "TRAJECTORY_EMBEDDING_MODEL")]
)
def test_doctor_says_that_a_model_without_a_price_is_not_asked(
    run_command: Command, databases: Databases, subject: str, setting: str
) -> None:
    given = {**databases, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", setting: "unheard-of"}
    result = run_command("doctor", **given)
    assert result.exit_code == 1
    said = squeezed(result)
    assert f"✓ {subject}: unheard-of at http://127.0.0.1:9/v1; not called" in said
    assert f"✗ {subject}: No price is known for the model unheard-of" in said
    allowed = run_command("doctor", **given, TRAJECTORY_ALLOW_UNPRICED="true", TRAJECTORY_DAILY_BUDGET_TOKENS="1000")
    assert allowed.exit_code == 0, allowed.output


def test_doctor_says_that_batches_have_no_price(run_command: Command, databases: Databases, tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"prices": [{"model": "unheard-of", "input": 1, "output": 2}]}', encoding="utf-8")
    given = {**databases, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "TRAJECTORY_PRICES": str(prices)}
    assert run_command("doctor", **given, TRAJECTORY_JUDGE_MODEL="unheard-of").exit_code == 0
    result = run_command("doctor", **given, TRAJECTORY_JUDGE_MODEL="unheard-of", TRAJECTORY_JUDGE_MODE="batch")
    assert result.exit_code == 1
    assert "✗ judge: No batch price is known for the model unheard-of" in squeezed(result)


@pytest.mark.parametrize(
    "table", some_heavy(["trajectories", "verdict_attempts", "invalidations", "redaction_keys"], "verdict_attempts")
)
@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
def test_doctor_names_the_one_right_on_a_table_that_is_missing(
    run_command: Command, databases: Databases, role: str, table: str, right: str
) -> None:
    execute(databases["TRAJECTORY_DATABASE_URL"], f"REVOKE {right} ON trajectory.{table} FROM {role}")
    result = run_command("doctor", **as_role(databases, role))
    assert result.exit_code == 1
    assert f"permission denied for table {table} — its owner could run: GRANT {right} ON trajectory.{table} TO" in (
        squeezed(result)
    )
    execute(databases["TRAJECTORY_DATABASE_URL"], f"GRANT {right} ON trajectory.{table} TO {role}")
    assert run_command("doctor", **as_role(databases, role)).exit_code == 0


@pytest.mark.parametrize(
    ("revoke", "names"),
    [
        ("REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC", "GRANT TEMPORARY ON DATABASE"),
        ("REVOKE USAGE ON SCHEMA trajectory FROM {role}", "permission denied for schema trajectory"),
        ("REVOKE EXECUTE ON FUNCTION pg_advisory_xact_lock(bigint) FROM PUBLIC", "GRANT EXECUTE ON FUNCTION"),
        ("REVOKE EXECUTE ON FUNCTION pg_advisory_xact_lock_shared(bigint) FROM PUBLIC", "pg_advisory_xact_lock_shared"),
        ("REVOKE SELECT ON trajectory.outcomes FROM {role}", "GRANT SELECT ON trajectory.outcomes"),
        (
            "ALTER TABLE trajectory.trajectories ENABLE ROW LEVEL SECURITY",
            "a policy would hide rows from this user",
        ),
    ],
)
def test_doctor_names_any_other_right_that_the_sink_needs(
    run_command: Command, databases: Databases, role: str, revoke: str, names: str
) -> None:
    url = databases["TRAJECTORY_DATABASE_URL"]
    execute(url, revoke.format(role=role, database=quote(urlsplit(url).path.strip("/"))))
    result = run_command("doctor", **as_role(databases, role))
    assert result.exit_code == 1
    assert names in squeezed(result)


@pytest.mark.parametrize(
    ("revoke", "names"),
    [
        ("REVOKE SELECT ON public.steps FROM {role}", "steps, every column"),
        (
            "REVOKE SELECT ON public.messages FROM {role}; GRANT SELECT (id, run_id) ON public.messages TO {role}",
            "messages, step_id, sequence_id",
        ),
        ("REVOKE SELECT ON public.agents FROM {role}", "agents, every column"),
        ("REVOKE USAGE ON SCHEMA public FROM PUBLIC", "permission denied for schema public"),
    ],
)
def test_doctor_names_what_cannot_be_read_at_the_source(
    run_command: Command, databases: Databases, role: str, revoke: str, names: str
) -> None:
    execute(databases["LETTA_PG_URI"], *revoke.format(role=role).split("; "))
    result = run_command("doctor", **as_role(databases, role))
    assert result.exit_code == 1
    assert names in squeezed(result)
    assert "GRANT SELECT" in squeezed(result)


def test_doctor_quotes_a_schema_name_with_quotes(run_command: Command, databases: Databases) -> None:
    execute(databases["LETTA_PG_URI"], 'ALTER SCHEMA public RENAME TO "le\'t""ta"')
    result = run_command("doctor", **databases)
    assert result.exit_code == 0, result.output
    assert 'ON "le\'t""ta"."runs"' in squeezed(result)


def test_doctor_tries_a_pending_migration_and_keeps_nothing(
    run_command: Command, databases: Databases, empty_database: str, role: str
) -> None:
    variables = {**databases, "TRAJECTORY_DATABASE_URL": empty_database}
    result = run_command("doctor", **variables)
    assert result.exit_code == 1
    assert "not made yet: run `trajectory-pipeline migrate`, which this user may do" in squeezed(result)
    assert query(empty_database, "SELECT to_regnamespace('trajectory')") == [(None,)]
    refused = run_command("doctor", **as_role(variables, role))
    assert "Migrating failed" in squeezed(refused)
    assert "CREATE on the database" in squeezed(refused)


def test_doctor_names_the_step_that_the_storage_refuses(
    run_command: Command, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run_command("doctor", **databases, TRAJECTORY_STORAGE_URI=str(tmp_path / "file"))
    assert result.exit_code == 1
    assert "Writing and renaming a file in" in squeezed(result)

    def refuse(*_: object) -> None:
        raise PermissionError("no removal here")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.rm_file", refuse)
    result = run_command("doctor", **databases)
    assert "Removing a file in" in squeezed(result)
