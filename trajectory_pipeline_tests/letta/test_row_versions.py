"""Whether a row's ``xmin`` tells that it did not change: in ordinary tables of one known cluster only."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from trajectory_pipeline.letta.fingerprint import dependency_digests, fingerprints
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline_tests.letta.snapshots import changed, do
from trajectory_pipeline_tests.letta_sample import sample_partitions

HOUR = max(sample_partitions().items(), key=lambda item: item[1])[0]
EDIT = "UPDATE {} SET content = '[]' WHERE id = (SELECT min(id) FROM {} WHERE role = 'assistant')"


def digests(url: str, **identity: str | None) -> tuple[dict[datetime, str], str]:
    with LettaSource(url).snapshot() as snapshot:
        snapshot.identity = replace(snapshot.identity, **identity)
        end = HOUR + timedelta(hours=1)
        return fingerprints(snapshot, HOUR - timedelta(days=9), HOUR + timedelta(days=9)), dependency_digests(
            snapshot, HOUR, end
        )


def versioned(url: str) -> set[str]:
    with LettaSource(url).snapshot() as snapshot:
        return {table for table, columns in snapshot.catalog.columns.items() if "xmin" in columns}


@pytest.mark.parametrize("cluster", ["cluster 1, timeline 1", "cluster 1, timeline 2"])
def test_another_cluster_or_timeline_changes_every_fingerprint(letta_database: str, cluster: str) -> None:
    """A copy may have the same versions with other rows."""
    before, dependencies = digests(letta_database)
    after, dependencies_after = digests(letta_database, cluster=cluster)
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    assert dependencies != dependencies_after


@pytest.fixture
def restricted(letta_database: str) -> Iterator[str]:
    """The URL of a user who may not read which cluster it is."""
    name = f"reader_{uuid4().hex[:12]}"
    do(
        letta_database,
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw'",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}",
    )
    yield changed(letta_database, user=name, password="pw")
    do(letta_database, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_unknown_cluster_compares_texts_of_rows(letta_database: str, restricted: str) -> None:
    assert versioned(letta_database) >= {"runs", "steps", "messages"}
    assert versioned(restricted) == set()
    before = digests(restricted)
    do(letta_database, "UPDATE messages SET id = id", "UPDATE runs SET id = id")
    assert digests(restricted) == before
    do(letta_database, EDIT.format("messages", "messages"))
    assert digests(restricted) != before


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_views_compare_texts_of_rows(letta_database: str, kind: str) -> None:
    do(letta_database, "ALTER TABLE messages RENAME TO kept", f"CREATE {kind} messages AS SELECT * FROM kept")
    assert "messages" not in versioned(letta_database)
    before, _ = digests(letta_database)
    do(letta_database, EDIT.format("kept", "kept"))
    if kind != "VIEW":
        do(letta_database, "REFRESH MATERIALIZED VIEW messages")
    after, _ = digests(letta_database)
    assert sum(before[hour] != after[hour] for hour in before) == 1


@pytest.mark.parametrize("kind", ["foreign table", "table with a foreign child", "partitioned with a foreign part"])
def test_foreign_rows_have_no_version(letta_database: str, kind: str) -> None:
    """Their ``xmin`` is 0, whatever happens to them."""
    foreign = "FOREIGN TABLE {} SERVER elsewhere"
    statements = {
        "foreign table": [f"CREATE {foreign.format('steps (LIKE kept)')}"],
        "table with a foreign child": [
            "CREATE TABLE steps (LIKE kept)",
            f"CREATE {foreign.format('far_steps () INHERITS (steps)')}",
        ],
        "partitioned with a foreign part": [
            "CREATE TABLE steps (LIKE kept) PARTITION BY HASH (id)",
            "CREATE TABLE near_steps PARTITION OF steps FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
            f"CREATE {foreign.format('far_steps PARTITION OF steps FOR VALUES WITH (MODULUS 2, REMAINDER 1)')}",
        ],
    }
    do(
        letta_database,
        "CREATE FOREIGN DATA WRAPPER nothing",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing",
        "ALTER TABLE steps RENAME TO kept",
        *(each.replace("FOREIGN TABLE steps (LIKE kept)", _columns()) for each in statements[kind]),
    )
    assert "steps" not in versioned(letta_database)
    assert {"runs", "messages"} <= versioned(letta_database)


def _columns() -> str:
    """A foreign table takes no LIKE."""
    names = "id run_id model stop_reason"
    numbers = "prompt_tokens completion_tokens total_tokens"
    columns = [*(f"{name} text" for name in names.split()), *(f"{name} bigint" for name in numbers.split())]
    return f"FOREIGN TABLE steps ({', '.join(columns)})"


def test_partitioned_table_has_versions(letta_database: str) -> None:
    do(
        letta_database,
        "ALTER TABLE steps RENAME TO kept",
        "CREATE TABLE steps (LIKE kept) PARTITION BY HASH (id)",
        "CREATE TABLE all_steps PARTITION OF steps FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        "INSERT INTO steps SELECT * FROM kept",
    )
    assert "steps" in versioned(letta_database)
    before, _ = digests(letta_database)
    do(letta_database, "UPDATE steps SET id = id WHERE run_id IS NOT NULL")
    assert digests(letta_database)[0] != before
