"""Search texts and embeddings name the agent and the organization of their trajectory, whatever is written when."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command

from trajectory_pipeline.search.embedding_models import EmbeddingModel
from trajectory_pipeline.storage.postgres import migrate as migrate_module
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.pgvector import find_pgvector
from trajectory_pipeline.storage.postgres.search import search
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline_tests.server_databases import wait_for_lock
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_model, add_runs

OF_TABLES = ("search_texts", "trajectory_embeddings")
OTHER = "UPDATE trajectory.trajectories SET organization_id = 'org-b', agent_id = 'agent-b' WHERE run_id = 'run-1'"


def tenants(connection: psycopg.Connection, run_id: str = "run-1") -> set[tuple[str | None, str | None]]:
    """Return what text and embedding of a run say."""
    return {
        row
        for table in OF_TABLES
        for row in connection.execute(
            f"SELECT organization_id, agent_id FROM trajectory.{table} WHERE run_id = %s".encode(), [run_id]
        )
    }


@pytest.mark.parametrize("organization_id", ["org-a", None])
def test_what_is_written_has_the_tenants_of_its_trajectory(
    trajectory_database: str, organization_id: str | None
) -> None:
    """Whoever writes: as here, a version that does not know the columns."""
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection)
        add_runs(connection, [Run("run-1", vector=(1, 0, 0), organization_id=organization_id)])
        assert tenants(connection) == {(organization_id, "agent-a")}


def test_a_run_of_another_organization_is_found_there_at_once(trajectory_database: str) -> None:
    def found(organization_id: str) -> list[str]:
        filters = SearchFilters(organization_ids=(organization_id,))
        return [hit.run_id for hit in search(connection, "text", 9, filters, query_vector=(1, 0, 0))]

    with psycopg.connect(trajectory_database) as connection:
        add_model(connection)
        add_runs(connection, [Run("run-1", vector=(1, 0, 0)), Run("run-2", vector=(1, 0, 0))])
        connection.execute(OTHER.encode())
        assert tenants(connection) == {("org-b", "agent-b")}
        assert tenants(connection, "run-2") == {("org-a", "agent-a")}
        assert (found("org-a"), found("org-b")) == (["run-2"], ["run-1"])
        connection.execute("UPDATE trajectory.trajectories SET organization_id = NULL")
        assert tenants(connection) == {(None, "agent-b")}
        assert found("org-b") == []


def test_a_text_that_is_stored_while_its_run_changes_hands_ends_with_the_new_tenants(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as storing, psycopg.connect(trajectory_database) as changing:
        add_model(storing)
        add_runs(storing, [Run("run-1", vector=(1, 0, 0))])
        storing.execute("DELETE FROM trajectory.trajectory_embeddings")
        storing.commit()
        # As embeddings are stored: the text is locked.
        storing.execute("SELECT FROM trajectory.search_texts FOR SHARE")
        thread = threading.Thread(target=lambda: (changing.execute(OTHER.encode()), changing.commit()))
        thread.start()
        wait_for_lock(trajectory_database)
        storing.execute(
            "INSERT INTO trajectory.trajectory_embeddings (run_id, model_id, partition_key, text_digest,"
            " rendering_version, embedded_at, failures) VALUES ('run-1', 'm', 'k', 'd', '1', now(), 0)"
        )
        assert tenants(storing) == {("org-a", "agent-a")}
        storing.commit()
        thread.join()
        assert tenants(storing) == {("org-b", "agent-b")}


@pytest.mark.parametrize("first", ["run-1", "run-2"])
def test_keeping_embeddings_up_to_date_waits_for_a_capture_and_never_stops_it(
    trajectory_database: str, first: str
) -> None:
    """A capture changes the organization of two runs; the embedding of one is stale, and that of the other missing."""
    model = EmbeddingModel("made-up")
    with psycopg.connect(trajectory_database) as connection:
        add_runs(connection, [Run("run-2"), Run("run-1", vector=(1, 0, 0), model_id=model.model_id)])
        pgvector = find_pgvector(connection)
        connection.execute("UPDATE trajectory.search_texts SET rendering_version = '2', text_digest = 'same'")
        connection.execute("UPDATE trajectory.trajectory_embeddings SET text_digest = 'same'")
    change = "UPDATE trajectory.trajectories SET organization_id = 'org-b' WHERE run_id = %s"
    keys = [Run("run-1").partition_key]
    with (
        psycopg.connect(trajectory_database) as capture,
        TrajectoryDatabase(trajectory_database).retrying() as connection,
        ThreadPoolExecutor() as threads,
    ):
        # Were both to wait for each other, this one would give up.
        capture.execute("SET LOCAL deadlock_timeout = '1ms'")
        capture.execute(change, [first])
        reused = threads.submit(EmbeddingStore(connection, pgvector, model).reuse, keys)
        wait_for_lock(trajectory_database)
        capture.execute(change, ["run-1" if first == "run-2" else "run-2"])
        capture.commit()
        assert reused.result(timeout=30) == 1
        for run_id in ("run-1", "run-2"):
            assert tenants(capture, run_id) == {("org-b", "agent-a")}
        rows = capture.execute("SELECT DISTINCT rendering_version FROM trajectory.trajectory_embeddings")
        assert rows.fetchall() == [("2",)]


def test_what_was_written_before_gets_its_tenants_when_the_schema_is_migrated(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module.command, "upgrade", lambda config, _: upgrade(config, "0022_run_versions"))
        for name in ("ensure_embeddings_table", "apply_comments"):
            patched.setattr(migrate_module, name, lambda _: None)
        migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        connection.execute("CREATE EXTENSION vector SCHEMA public")
        connection.execute(
            "CREATE TABLE trajectory.trajectory_embeddings (run_id TEXT NOT NULL, model_id TEXT NOT NULL, partition_key"
            " TEXT NOT NULL, text_digest TEXT NOT NULL, rendering_version TEXT NOT NULL, embedding public.halfvec,"
            " embedded_at TIMESTAMP WITH TIME ZONE NOT NULL, error_class TEXT, error_message TEXT, failures BIGINT NOT"
            " NULL, next_attempt_at TIMESTAMP WITH TIME ZONE, PRIMARY KEY (run_id, model_id))"
        )
        connection.execute(
            "CREATE INDEX ix_trajectory_embeddings_hnsw_0123456789ab ON trajectory.trajectory_embeddings USING hnsw"
            " ((embedding::public.halfvec(3)) public.halfvec_cosine_ops)"
        )
        add_model(connection)
        add_runs(connection, [Run(f"run-{n}", vector=(1, n, 0), agent_id=f"agent-{n}") for n in range(9)])
    migrate(empty_database, rehearse=True)
    updated = "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'search_texts'"
    with psycopg.connect(empty_database) as connection:
        assert connection.execute(updated).fetchone() == (0,), "a rehearsal fills nothing"
    migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        for number in range(9):
            assert tenants(connection, f"run-{number}") == {("org-a", f"agent-{number}")}
        connection.execute("UPDATE trajectory.trajectories SET agent_id = 'agent-b'")
        assert tenants(connection, "run-3") == {("org-a", "agent-b")}
        assert connection.execute("SELECT FROM pg_indexes WHERE indexname LIKE '%hnsw%'").rowcount == 0


def test_without_pgvector_texts_alone_have_tenants(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        connection.execute("DROP TABLE trajectory.trajectory_embeddings")
        add_runs(connection, [Run("run-1")])
        connection.execute(OTHER.encode())
        rows = connection.execute("SELECT organization_id, agent_id FROM trajectory.search_texts")
        assert rows.fetchall() == [("org-b", "agent-b")]


def test_a_trajectory_that_comes_after_its_text_passes_on_its_tenants(trajectory_database: str) -> None:
    """As where data alone is restored, in the order of names."""
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection)
        add_runs(connection, [Run("run-1", vector=(1, 0, 0))])
        connection.execute("CREATE TABLE trajectory.saved AS SELECT * FROM trajectory.trajectories")
        for table in OF_TABLES:
            connection.execute(f"UPDATE trajectory.{table} SET organization_id = NULL, agent_id = NULL".encode())
        connection.execute("DELETE FROM trajectory.trajectories")
        connection.execute("INSERT INTO trajectory.trajectories SELECT * FROM trajectory.saved")
        assert tenants(connection) == {("org-a", "agent-a")}
