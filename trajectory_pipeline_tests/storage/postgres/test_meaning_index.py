"""The indexes of embeddings are made where there are many, and never cost a result."""

from collections.abc import Sequence

import numpy as np
import psycopg
import pytest

from trajectory_pipeline.conversion.summary import MOST_ID_BYTES
from trajectory_pipeline.storage.postgres import meaning_index
from trajectory_pipeline.storage.postgres import search as search_module
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.meaning_index import ensure_meaning_indexes, find_space
from trajectory_pipeline.storage.postgres.recent_counts import RecentCounts
from trajectory_pipeline.storage.postgres.search import SearchHit, contrast, search
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import ServiceDatabase, Tenants
from trajectory_pipeline.storage.postgres.service_role import prepare_service_role
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_model, add_runs

QUERY = (1.0, 0.0, 0.0)


@pytest.fixture
def database(trajectory_database: str, monkeypatch: pytest.MonkeyPatch) -> TrajectoryDatabase:
    """300 runs of two agents with embeddings, where 300 are many."""
    rng = np.random.default_rng(1)
    runs = [
        Run(f"run-{n:03}", vector=rng.standard_normal(3).round(2).tolist(), agent_id=f"agent-{n % 2}")
        for n in range(300)
    ]
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection)
        add_runs(connection, runs)
    monkeypatch.setattr(meaning_index, "INDEXED_EMBEDDINGS", 300)
    return TrajectoryDatabase(trajectory_database)


def near(
    database: TrajectoryDatabase, k: int, filters: SearchFilters | None = None, query: Sequence[float] = QUERY
) -> Sequence[SearchHit]:
    with psycopg.connect(database.url) as connection:
        # So few rows would be read one after the other.
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off")
        return search(connection, "text", k, filters or SearchFilters(), mode="meaning", query_vector=query)


def scans(database: TrajectoryDatabase) -> int:
    (row,) = database.rows(
        "SELECT coalesce(sum(idx_scan), 0)::bigint AS scans FROM pg_stat_all_indexes WHERE indexrelname LIKE %s",
        ["%hnsw%"],
    )
    return int(row["scans"])


def test_indexes_are_made_once_there_are_enough_embeddings(database: TrajectoryDatabase) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(meaning_index, "INDEXED_EMBEDDINGS", 301)
        assert ensure_meaning_indexes(database) == 0
    assert ensure_meaning_indexes(database) == 2
    assert ensure_meaning_indexes(database) == 0


def test_missing_index_is_created_beside_the_other(database: TrajectoryDatabase) -> None:
    """As in a database of an older version, which had one."""
    ensure_meaning_indexes(database)
    with psycopg.connect(database.url) as connection:
        (name,) = of_organizations(connection)
        connection.execute(f"DROP INDEX trajectory.{name}".encode())
        model = find_space(connection).model
        assert model is not None
        assert (model.indexed, model.by_organization) == (True, False)
    assert ensure_meaning_indexes(database) == 1


def of_organizations(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute("SELECT indexname FROM pg_indexes WHERE indexname LIKE '%of_organization%'")
    return [str(name) for (name,) in rows]


def test_embeddings_of_a_run_with_the_longest_ids_go_into_each_index(
    trajectory_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning_index, "INDEXED_EMBEDDINGS", 1)
    ids = dict(zip(("run_id", "agent_id", "organization_id"), _random_text(3, MOST_ID_BYTES // 3), strict=True))
    vector = [1.0] * 256
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection, dimensions=256)
        add_runs(connection, [Run("run-0", vector=vector)])
    assert ensure_meaning_indexes(TrajectoryDatabase(trajectory_database)) == 2
    with psycopg.connect(trajectory_database) as connection:
        add_runs(connection, [Run(ids["run_id"], vector=vector, **{name: ids[name] for name in list(ids)[1:]})])


def _random_text(number: int, length: int) -> list[str]:
    """Texts that no compression shortens."""
    rng = np.random.default_rng(3)
    return ["".join(chr(one) for one in rng.integers(33, 127, length)) for _ in range(number)]


def test_embeddings_that_a_b_tree_cannot_hold_have_the_index_of_the_nearest_alone(
    trajectory_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning_index, "INDEXED_EMBEDDINGS", 1)
    with psycopg.connect(trajectory_database) as connection:
        add_model(connection, dimensions=1_536)
        add_runs(connection, [Run("run-0", vector=[1.0] * 1_536)])
    assert ensure_meaning_indexes(TrajectoryDatabase(trajectory_database)) == 1
    assert ensure_meaning_indexes(TrajectoryDatabase(trajectory_database)) == 0


def test_whole_organizations_are_looked_at_whole_by_the_index_that_holds_them_together(
    database: TrajectoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_organization = SearchFilters(organization_ids=("org-a",))
    with psycopg.connect(database.url) as connection:
        # The nearest ones are deleted, so that the first look finds too few.
        nearest = [hit.run_id for hit in near(database, 210)]
        connection.execute("UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = ANY(%s)", [nearest])
    exact = near(database, 20, of_organization)
    ensure_meaning_indexes(database)
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX"):
        monkeypatch.setattr(search_module, name, 10)
    assert near(database, 20, of_organization) == exact
    assert scans(database) == 0
    monkeypatch.setattr(search_module, "EXACT_RUNS_OF_ORGANIZATION", 10)
    assert len(near(database, 20, of_organization)) == 20
    assert scans(database) > 0


@pytest.mark.parametrize("one_in", [2, 9, 100])
def test_a_part_of_an_organization_is_found_as_if_each_of_its_runs_was_looked_at(
    database: TrajectoryDatabase, monkeypatch: pytest.MonkeyPatch, one_in: int
) -> None:
    """Most pass the filter; few, for which more are looked at; or so few that these are found otherwise."""
    filters = SearchFilters(organization_ids=("org-a",), tools=("refund",))
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "UPDATE trajectory.trajectories SET tools_used = ARRAY['refund'] WHERE right(run_id, 3)::int %% %s = 0",
            [one_in],
        )
    exact = near(database, 5, filters)
    ensure_meaning_indexes(database)
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX", "_DEPTH"):
        monkeypatch.setattr(search_module, name, 5)
    monkeypatch.setattr(search_module, "LOOKED_AT", 4)
    assert near(database, 5, filters) == exact
    assert scans(database) == 0
    assert len(exact) == min(5, -(-300 // one_in))


def test_a_contrast_of_a_whole_organization_has_no_deleted_run(
    database: TrajectoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_organization = SearchFilters(organization_ids=("org-a",))
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX"):
        monkeypatch.setattr(search_module, name, 10)
    ensure_meaning_indexes(database)
    with psycopg.connect(database.url) as connection:
        deleted = {hit.run_id for hit in near(database, 100)}
        connection.execute(
            "UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id = ANY(%s)", [list(deleted)]
        )
        found = contrast(connection, "text", 50, of_organization, mode="meaning", query_vector=QUERY)
    assert len(found.successes) == 50
    assert not deleted & {hit.run_id for hit in found.successes}
    similarities = [hit.similarity for hit in found.successes]
    assert similarities == sorted(similarities, reverse=True)


def test_a_count_of_a_minute_ago_costs_no_result(database: TrajectoryDatabase) -> None:
    """Of runs that were many a minute ago and are few now, all are found."""
    of_organization, recent = SearchFilters(organization_ids=("org-a",)), RecentCounts()
    ensure_meaning_indexes(database)
    recent.remember_runs(of_organization, 300)
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id > 'run-004'")
        found = search(connection, "text", 20, of_organization, mode="meaning", query_vector=QUERY, recent=recent)
    assert {hit.run_id for hit in found} == {f"run-00{n}" for n in range(5)}


def test_the_index_finds_what_looking_at_all_finds(database: TrajectoryDatabase) -> None:
    exact = near(database, 20)
    assert ensure_meaning_indexes(database)
    found = near(database, 20)
    assert scans(database) == 1
    assert [(hit.run_id, hit.rank) for hit in found] == [(hit.run_id, hit.rank) for hit in exact]
    assert near(database, 20, SearchFilters(agent_ids=("agent-1",)))
    assert scans(database) == 1, "with a filter, all that pass it are looked at"


def test_of_few_that_pass_a_filter_the_index_finds_the_nearest_in_order(
    trajectory_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on until enough pass, and what it finds late is put in its place: in strict order it finds 12 of 20."""
    database, of_agent = TrajectoryDatabase(trajectory_database), SearchFilters(agent_ids=("agent-1",))
    rng = np.random.default_rng(2)
    # As runs are: a few tasks, again and again.
    tasks = rng.standard_normal((25, 32))
    vectors = (tasks[rng.integers(0, 25, 1_500)] + rng.standard_normal((1_500, 32)) / 3).round(3).tolist()
    query = rng.standard_normal(32).tolist()
    runs = [Run(f"run-{n:04}", vector=vector, agent_id=f"agent-{n % 8}") for n, vector in enumerate(vectors)]
    with psycopg.connect(database.url) as connection:
        add_model(connection, dimensions=32)
        add_runs(connection, runs)
    monkeypatch.setattr(meaning_index, "INDEXED_EMBEDDINGS", 1_500)
    exact = near(database, 20, of_agent, query)
    assert ensure_meaning_indexes(database)
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX"):
        monkeypatch.setattr(search_module, name, 0)
    for name in ("_LEAST_EF", "_MOST_EF", "_DEPTH"):
        monkeypatch.setattr(search_module, name, 20)
    found = near(database, 20, of_agent, query)
    assert scans(database) == 1
    similarities = [hit.similarity for hit in found]
    assert similarities == sorted(similarities, reverse=True)
    assert len({hit.run_id for hit in found} & {hit.run_id for hit in exact}) >= 16


def test_the_embeddings_of_a_whole_agent_are_looked_at_up_to_a_number_of_runs(
    database: TrajectoryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_agent = SearchFilters(agent_ids=("agent-1",))
    exact = near(database, 20, of_agent)
    assert ensure_meaning_indexes(database)
    monkeypatch.setattr(search_module, "EXACT_RUNS_BESIDE_INDEX", 10)
    monkeypatch.setattr(search_module, "EXACT_RUNS", 150)
    assert near(database, 20, of_agent) == exact
    assert scans(database) == 0
    monkeypatch.setattr(search_module, "EXACT_RUNS", 149)
    assert len(near(database, 20, of_agent)) == 20
    assert scans(database) == 1


@pytest.mark.heavy
def test_a_client_that_sees_many_runs_asks_the_indexes_too(
    trajectory_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner has to expect that many embeddings pass the policy, though each query names the tenants as well."""
    database, tenants = TrajectoryDatabase(trajectory_database), Tenants(frozenset({"org-0"}), frozenset())
    with psycopg.connect(database.url, autocommit=True) as connection:
        add_model(connection, dimensions=96)
        add_runs(connection, [Run("run-0", vector=[1.0] * 96, organization_id="org-0")])
        # Half of the runs are of one organization, and the rest of many others.
        organization = "'org-' || CASE WHEN n % 2 = 0 THEN 0 ELSE n % 97 END"
        _copy_row(connection, "trajectories", f"'organization_id', {organization}, 'agent_id', 'agent-' || n % 300")
        _copy_row(connection, "search_texts", "'rendering_version', '1'")
        connection.execute(
            "INSERT INTO trajectory.trajectory_embeddings (run_id, model_id, partition_key, text_digest,"
            " rendering_version, embedding, embedded_at, failures)"
            " SELECT 'run-' || n, model_id, partition_key, text_digest, rendering_version,"
            " ARRAY(SELECT random() - 0.5 FROM generate_series(1, 96) WHERE n > 0)::real[]::public.halfvec,"
            " embedded_at, 0 FROM trajectory.trajectory_embeddings CROSS JOIN generate_series(1, 49999) n"
        )
        connection.execute("VACUUM ANALYZE")
        prepare_service_role(connection)
    monkeypatch.setattr(meaning_index, "INDEXED_EMBEDDINGS", 50_000)
    assert ensure_meaning_indexes(database)
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE trajectory.trajectory_embeddings")

    def found() -> list[SearchHit]:
        filters = SearchFilters(tenants=tenants)
        with ServiceDatabase(database, 60).reading(tenants) as connection:
            return search(connection, "text", 20, filters, mode="meaning", query_vector=[1.0] * 96)

    exact = found()
    assert {hit.organization_id for hit in exact} == {"org-0"}
    assert scans(database) == 0
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX", "EXACT_RUNS_OF_ORGANIZATION"):
        monkeypatch.setattr(search_module, name, 1_000)
    by_index = found()
    assert len(by_index) == 20
    assert {hit.organization_id for hit in by_index} == {"org-0"}
    assert scans(database) == 1


def _copy_row(connection: psycopg.Connection, table: str, changed: str) -> None:
    """Add 49,999 rows to a table's only one, which differ from it in the id of the run and in what is said."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = ''"
        " AND NOT attisdropped",
        [f"trajectory.{table}"],
    )
    names = [str(name) for (name,) in rows]
    connection.execute(
        f"INSERT INTO trajectory.{table} ({', '.join(names)}) SELECT {', '.join(f'(r).{name}' for name in names)}"
        f" FROM (SELECT jsonb_populate_record(t, jsonb_build_object('run_id', 'run-' || n, {changed})) AS r"
        f" FROM trajectory.{table} t CROSS JOIN generate_series(1, 49999) n) made".encode()
    )


def test_where_the_index_finds_too_few_all_are_looked_at(database: TrajectoryDatabase) -> None:
    assert ensure_meaning_indexes(database)
    left = {"run-007", "run-150", "run-299"}
    with psycopg.connect(database.url) as connection:
        connection.execute(
            "UPDATE trajectory.trajectories SET deleted_at = now() WHERE run_id <> ALL(%s)", [list(left)]
        )
    assert {hit.run_id for hit in near(database, 5)} == left


def test_another_model_gets_an_index_of_its_own_in_place_of_the_former(database: TrajectoryDatabase) -> None:
    assert ensure_meaning_indexes(database)
    with psycopg.connect(database.url) as connection:
        connection.execute("UPDATE trajectory.embedding_models SET is_current = false")
        add_model(connection, "another's")
        connection.execute("UPDATE trajectory.trajectory_embeddings SET model_id = 'another''s'")
        model = find_space(connection).model
        assert model is not None
        assert not model.indexed
    assert ensure_meaning_indexes(database)
    rows = database.rows("SELECT indexname FROM pg_indexes WHERE indexname LIKE %s", ["%hnsw%"])
    assert len(rows) == 1
    assert len(near(database, 9)) == 9


def test_without_embeddings_there_is_nothing_to_index(trajectory_database: str) -> None:
    assert not ensure_meaning_indexes(TrajectoryDatabase(trajectory_database))
