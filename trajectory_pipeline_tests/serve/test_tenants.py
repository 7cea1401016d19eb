"""Nobody sees what is not theirs: tokens, tenants and scopes over HTTP, and policies in Postgres below every query."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx2
import psycopg
import pytest
from fastapi.routing import iter_route_contexts
from psycopg import sql

from trajectory_pipeline.errors import PipelineError, SinkError
from trajectory_pipeline.serve.app import create_app
from trajectory_pipeline.serve.pages import COOKIE
from trajectory_pipeline.serve.service import make_service
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.prepared import Prepared
from trajectory_pipeline.storage.postgres.search import EXACT_RUNS, LOOKED_AT, search
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import QueryTimeoutError, ServiceDatabase, Tenants
from trajectory_pipeline.storage.postgres.service_role import (
    NEWEST_WITH_WORDS,
    POLICY,
    ROLE,
    SHARED_TABLES,
    TENANT_TABLES,
    is_prepared,
)
from trajectory_pipeline.storage.postgres.service_tokens import create_token, find_token, list_tokens, revoke_token
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.conftest import make_settings
from trajectory_pipeline_tests.serve.tenancy import ALL_SCOPES, MINE, OTHER, Tokens, insert_run

ONLY_MINE = Tenants(frozenset({MINE}), frozenset())
NOBODY = Tenants(frozenset({"org-nobody"}), frozenset())


@pytest.fixture
def database(tenant_settings: Settings, tokens: Tokens) -> TrajectoryDatabase:
    return TrajectoryDatabase(str(tenant_settings.storage.database_url))


def listed(client: httpx2.Client, headers: dict[str, str]) -> set[str]:
    answer = client.get("/v1/trajectories", params={"limit": 200}, headers=headers)
    assert answer.status_code == 200, answer.text
    return {item["run_id"] for item in answer.json()["items"]}


def test_tokens_list_the_runs_of_their_tenants(guarded: httpx2.Client, tokens: Tokens) -> None:
    assert tokens.runs[MINE]
    assert tokens.runs[OTHER]
    assert listed(guarded, tokens.header("mine")) == tokens.runs[MINE]
    assert listed(guarded, tokens.header("foreign")) == set()
    assert listed(guarded, tokens.header("all")) == tokens.runs[MINE] | tokens.runs[OTHER]
    one = listed(guarded, tokens.header("agent"))
    assert set() < one < tokens.runs[OTHER]
    assert listed(guarded, tokens.header("both")) == tokens.runs[MINE] | one


def test_foreign_run_is_as_unknown_as_none(guarded: httpx2.Client, tokens: Tokens) -> None:
    foreign = guarded.get(f"/v1/trajectories/{min(tokens.runs[OTHER])}", headers=tokens.header("mine"))
    unknown = guarded.get("/v1/trajectories/run-unknown", headers=tokens.header("mine"))
    assert (foreign.status_code, unknown.status_code) == (404, 404)
    assert foreign.json()["detail"] == unknown.json()["detail"]


def operations(client: httpx2.Client) -> list[tuple[str, str, dict[str, Any]]]:
    described = client.get("/openapi.json").json()
    found = []
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            content = one.get("requestBody", {}).get("content", {}).get("application/json")
            shape = content and described["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            found.append((method, path, {**one, "body": shape and shape["example"]}))
    return found


def request_of(method: str, path: str, operation: dict[str, Any], run_id: str) -> tuple[str, dict[str, Any]]:
    """Return a request that would find the run: its path, and what to give the client."""
    query = {
        one["name"]: "the" for one in operation.get("parameters", ()) if one["in"] == "query" and one.get("required")
    }
    options: dict[str, Any] = {"params": query}
    if operation["body"] is not None:
        options["json"] = {**operation["body"], "run_ids": [run_id]}
    return re.sub(r"\{\w+\}", run_id, path), options


def test_no_endpoint_shows_anything_to_a_foreign_token(guarded: httpx2.Client, tokens: Tokens) -> None:
    secret = {*tokens.runs[MINE], *tokens.runs[OTHER], *tokens.agents[MINE], *tokens.agents[OTHER], MINE, OTHER}
    asked = sorted(tokens.runs[MINE])[0]
    found = operations(guarded)
    assert len(found) >= 11
    for method, path, operation in found:
        url, options = request_of(method, path, operation, asked)
        answer = guarded.request(method, url, headers=tokens.header("foreign"), **options)
        # Without a Dagster, nobody is told of requests.
        allowed = (503,) if path.startswith("/v1/requests") else (200, 404)
        assert answer.status_code in allowed, (method, path, answer.text)
        # What was asked is known to whoever asks.
        leaked = [text for text in secret - {asked} if text in answer.text]
        assert leaked == [], (method, path)
        assert answer.status_code != 200 or asked not in answer.text, (method, path, answer.text)


PUBLIC = {"/login", "/logout", "/style.css", "/openapi.json", "/docs"}
"""Pages and files that hold nothing of any run."""


@pytest.fixture(scope="module")
def pages(tenant_settings: Settings, tokens: Tokens, guarded: httpx2.Client) -> list[tuple[str, str]]:
    """Method and path of every route of the app that is neither in its description nor MCP, whose tools are walked
    where they are tested.
    """
    storage = Storage.at("unused", str(tenant_settings.storage.database_url))
    app: Any = create_app(make_service(tenant_settings, storage, loopback=True))
    described = {(method.upper(), path) for method, path, _ in operations(guarded)}
    routes = {
        (method, str(route.path_format))
        for route in iter_route_contexts(app._app._app._app.routes)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described | {("POST", "/mcp")} < routes
    return sorted(routes - described - {("POST", "/mcp")})


def test_no_page_shows_anything_to_a_foreign_token(
    guarded: httpx2.Client, tokens: Tokens, pages: list[tuple[str, str]]
) -> None:
    secret = {*tokens.runs[MINE], *tokens.runs[OTHER], *tokens.agents[MINE], *tokens.agents[OTHER], MINE, OTHER}
    asked = min(tokens.runs[MINE])
    assert {("GET", "/"), ("GET", "/runs/{run_id}"), ("GET", "/families")} <= set(pages)
    for method, path in pages:
        for query in ("", "?q=the", "?q=the&view=contrast"):
            url = re.sub(r"\{\w+\}", asked, path) + query
            own, foreign, nobody = (
                guarded.request(method, url, headers={"cookie": f"{COOKIE}={tokens.by_name[name]}"} if name else {})
                for name in ("mine", "foreign", None)
            )
            assert [text for text in secret if text in foreign.text] == [], (method, url)
            assert not any(text in own.text for text in tokens.runs[OTHER]), (method, url)
            if path not in PUBLIC:
                assert own.status_code == 200, (method, url)
                assert (nobody.status_code, nobody.headers["location"][:6]) == (303, "/login"), (method, url)


@pytest.mark.parametrize("name", ["expired", "revoked", None])
def test_every_endpoint_but_health_needs_a_valid_token(
    guarded: httpx2.Client, tokens: Tokens, name: str | None
) -> None:
    headers = tokens.header(name) if name else {}
    for method, path, operation in operations(guarded):
        url, options = request_of(method, path, operation, min(tokens.runs[MINE]))
        answer = guarded.request(method, url, headers=headers, **options)
        assert answer.status_code == (200 if path == "/health" else 401), (method, path)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x", "Basic eDp5", "Bearer trajectory_0123456789ab_" + "A" * 43, "Bearer \xff", "x" * 9000],
)
def test_odd_authorization_is_refused(guarded: httpx2.Client, tokens: Tokens, header: str) -> None:
    answer = guarded.get("/v1/trajectories", headers={"authorization": header.encode("latin-1")})
    assert answer.status_code == 401


@pytest.mark.parametrize("header", ["Bearer  {}", "bearer {}", "BEARER   {}"])
def test_every_endpoint_reads_the_header_alike(guarded: httpx2.Client, tokens: Tokens, header: str) -> None:
    headers = {"authorization": header.format(tokens.by_name["mine"])}
    for path in (f"/v1/trajectories/{min(tokens.runs[MINE])}", "/v1/statistics", "/metrics", "/"):
        assert guarded.get(path, headers=headers).status_code == 200, path


def test_scope_is_needed(guarded: httpx2.Client, tokens: Tokens) -> None:
    answer = guarded.get("/v1/trajectories", headers=tokens.header("judge"))
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")


def test_tokens_are_stored_as_hashes_only(database: TrajectoryDatabase, tokens: Tokens) -> None:
    stored = repr(database.rows("SELECT t::text AS row FROM trajectory.service_tokens t"))
    assert len(list_tokens(database)) == len(tokens.by_name)
    for token in tokens.by_name.values():
        assert token.split("_")[1] in stored
        assert token.split("_", 2)[2] not in stored


def test_token_with_another_secret_is_unknown(database: TrajectoryDatabase, tokens: Tokens) -> None:
    token = tokens.by_name["all"]
    changed = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert find_token(database, token) is not None
    assert find_token(database, changed) is None


def test_unknown_token_cannot_be_revoked(database: TrajectoryDatabase, tokens: Tokens) -> None:
    with pytest.raises(PipelineError, match="no token 'x'"):
        revoke_token(database, "x")


# Postgres itself: whatever a query forgets


def relations(database: TrajectoryDatabase) -> set[str]:
    rows = database.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'trajectory'::regnamespace AND relkind IN ('r', 'v', 'm')"
    )
    return {row["relname"] for row in rows}


def test_query_without_where_sees_the_tenants_rows_alone(database: TrajectoryDatabase, tokens: Tokens) -> None:
    for name in relations(database) & TENANT_TABLES.keys():
        everything = {row["run_id"] for row in database.rows(f"SELECT run_id FROM trajectory.{name}")}
        with ServiceDatabase(database, 10).reading(ONLY_MINE) as connection:
            seen = {row[0] for row in connection.execute(f"SELECT run_id FROM trajectory.{name}".encode())}
        assert seen == everything & tokens.runs[MINE], name
        with ServiceDatabase(database, 10).reading(NOBODY) as connection:
            assert connection.execute(f"SELECT run_id FROM trajectory.{name}".encode()).fetchall() == [], name


def test_role_reads_nothing_but_tables_with_policies_and_shared_ones(
    database: TrajectoryDatabase, tokens: Tokens
) -> None:
    """Views would read as their owner, who sees every row."""
    names = relations(database)
    assert {"outcomes", "labels", "verdict_attempts", "service_tokens", "redaction_keys"} <= names
    for name in names - TENANT_TABLES.keys() - set(SHARED_TABLES):
        with (
            pytest.raises(SinkError, match="permission denied"),
            ServiceDatabase(database, 10).reading(ONLY_MINE) as connection,
        ):
            connection.execute(f"SELECT * FROM trajectory.{name}".encode())


@pytest.mark.parametrize("are_few", [True, False])
@pytest.mark.parametrize("tenants", [ONLY_MINE, NOBODY])
def test_function_that_finds_words_returns_the_tenants_runs_alone(
    database: TrajectoryDatabase, tokens: Tokens, tenants: Tenants, *, are_few: bool
) -> None:
    every = "SELECT s.run_id FROM trajectory.search_texts s WHERE s.words @@ 'the'::tsquery"
    theirs = {row["run_id"] for row in database.rows(every)} & (tokens.runs[MINE] if tenants == ONLY_MINE else set())
    call = f"SELECT run_id FROM {NEWEST_WITH_WORDS}('the'::tsquery, %s, %s) AS run_id"
    with ServiceDatabase(database, 10).reading(tenants) as connection:
        found = [row[0] for row in connection.execute(call.encode(), [1_000, are_few])]
        assert len(connection.execute(call.encode(), [1, are_few]).fetchall()) == min(1, len(theirs))
    assert (len(found), set(found)) == (len(theirs), theirs)
    with ServiceDatabase(database, 10).reading(None) as connection:
        assert connection.execute(call.encode(), [1_000, are_few]).fetchall() == [], (
            "without tenants there is nothing to find"
        )


@pytest.mark.parametrize("most", [EXACT_RUNS, 0], ids=["few", "many"])
def test_search_of_a_client_finds_all_of_its_runs_and_no_other(
    database: TrajectoryDatabase, tokens: Tokens, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX"):
        monkeypatch.setattr(f"trajectory_pipeline.storage.postgres.search.{name}", most)
    for tenants, runs in ((ONLY_MINE, tokens.runs[MINE]), (NOBODY, frozenset[str]())):
        everything = SearchFilters(organization_ids=tuple(sorted(tenants.organizations)))
        with database.connect() as connection:
            expected = [(hit.run_id, hit.score) for hit in search(connection, "the order", 50, everything)]
        with ServiceDatabase(database, 10).reading(tenants) as connection:
            found = search(connection, "the order", 50, SearchFilters(tenants=tenants))
            # Without the filter, Postgres shows no more.
            assert {hit.run_id for hit in search(connection, "the order", 50)} == {hit.run_id for hit in found}
        assert {hit.run_id for hit in found} == {run_id for run_id, _ in expected} <= runs


@pytest.mark.parametrize("looked_at", [LOOKED_AT, 0], ids=["enough", "too few at first"])
def test_filtered_search_of_a_client_with_many_runs_finds_all_of_these(
    database: TrajectoryDatabase, tokens: Tokens, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("EXACT_RUNS", 0), ("EXACT_RUNS_BESIDE_INDEX", 0), ("LOOKED_AT", looked_at)):
        monkeypatch.setattr(f"trajectory_pipeline.storage.postgres.search.{name}", value)
    successes = SearchFilters(heuristic_outcomes=("success",))
    of_mine = replace(successes, organization_ids=tuple(sorted(ONLY_MINE.organizations)))
    with database.connect() as connection:
        expected = {hit.run_id for hit in search(connection, "the order", 50, of_mine)}
    with ServiceDatabase(database, 10).reading(ONLY_MINE) as connection:
        found = {hit.run_id for hit in search(connection, "the order", 50, replace(successes, tenants=ONLY_MINE))}
    assert found == expected
    assert 0 < len(found) < len(tokens.runs[MINE])


@pytest.mark.parametrize("name", sorted({*TENANT_TABLES} - {"trajectory_embeddings"}))
def test_role_writes_nothing(database: TrajectoryDatabase, tokens: Tokens, name: str) -> None:
    for statement in (f"DELETE FROM trajectory.{name}", f"INSERT INTO trajectory.{name} DEFAULT VALUES"):
        with (
            pytest.raises(SinkError, match=r"permission denied|read-only"),
            ServiceDatabase(database, 10).reading(ONLY_MINE) as connection,
        ):
            connection.execute(statement.encode())


def test_reader_of_all_runs_writes_nothing(database: TrajectoryDatabase, tokens: Tokens) -> None:
    with pytest.raises(SinkError, match="read-only"), ServiceDatabase(database, 10).reading(None) as connection:
        connection.execute("DELETE FROM trajectory.verdicts")


def test_role_and_tenants_end_with_the_transaction(database: TrajectoryDatabase, tokens: Tokens) -> None:
    count = "SELECT count(*) FROM trajectory.trajectories"
    with database.pooled() as pooled:
        service = ServiceDatabase(pooled, 10)
        for _ in range(2):
            with service.reading(NOBODY) as connection:
                pid = connection.info.backend_pid
                assert connection.execute(count.encode()).fetchall() == [(0,)]
            with service.reading(None) as connection:
                assert connection.info.backend_pid == pid
                assert connection.execute(count.encode()).fetchall() != [(0,)]


def test_one_round_trip_reads_as_a_transaction_does(database: TrajectoryDatabase, tokens: Tokens) -> None:
    """On one connection, whose sessions keep plans, for different tenants in turn."""
    statement = Prepared("SELECT run_id FROM trajectory.trajectories WHERE run_id <> $1::text")
    writing = Prepared("DELETE FROM trajectory.verdicts")
    odd = Tenants(frozenset({MINE, 'a"b', "c\\d", "{e,f}", "g'h", ""}), frozenset())
    with database.pooled() as pooled:
        service = ServiceDatabase(pooled, 10)
        for _ in range(7):
            for tenants, runs in (
                (None, tokens.runs[MINE] | tokens.runs[OTHER]), (ONLY_MINE, tokens.runs[MINE]), (NOBODY, set[str]()),
                (odd, tokens.runs[MINE]),
            ):  # fmt: skip
                assert {row["run_id"] for row in service.read(tenants, statement, "it's")} == runs
                with service.reading(tenants) as connection:
                    seen = connection.execute("SELECT run_id FROM trajectory.trajectories").fetchall()
                    assert {run_id for (run_id,) in seen} == runs
        for tenants, refusal in ((None, "read-only"), (ONLY_MINE, "permission denied|read-only")):
            with pytest.raises(SinkError, match=refusal):
                service.read(tenants, writing)


def test_statement_is_prepared_again_where_a_pooler_gives_another_session(
    database: TrajectoryDatabase, tokens: Tokens
) -> None:
    statement = Prepared("SELECT count(*) AS n FROM trajectory.trajectories")
    with database.pooled() as pooled:
        service = ServiceDatabase(pooled, 10)
        for forgotten in ("ALL", statement.name, "ALL", None):
            assert service.read(ONLY_MINE, statement) == [{"n": len(tokens.runs[MINE])}]
            with service.reading(ONLY_MINE) as connection:
                assert connection.execute("SELECT count(*) FROM trajectory.trajectories").fetchone() == (
                    len(tokens.runs[MINE]),
                )
            if forgotten:
                with pooled.session(autocommit=True) as connection:
                    connection.execute(f"DEALLOCATE {forgotten}".encode())


def test_role_without_tenants_sees_nothing(database: TrajectoryDatabase, tokens: Tokens) -> None:
    """A defect that forgets to say for whom it reads."""
    with psycopg.connect(database.url) as connection:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
        for name in relations(database) & TENANT_TABLES.keys():
            assert connection.execute(f"SELECT * FROM trajectory.{name}".encode()).fetchall() == []


def test_long_query_is_ended(database: TrajectoryDatabase, tokens: Tokens) -> None:
    with (
        pytest.raises(QueryTimeoutError, match=r"longer than 0\.1 seconds"),
        ServiceDatabase(database, 0.1).reading(None) as connection,
    ):
        connection.execute("SELECT pg_sleep(5)")
    with pytest.raises(QueryTimeoutError, match=r"longer than 0\.1 seconds"):
        ServiceDatabase(database, 0.1).read(None, Prepared("SELECT pg_sleep(5)"))


@pytest.fixture
def login(make_database: Callable[[str | None], str]) -> Callable[..., tuple[str, str]]:
    """A function that makes an empty database and a user with some rights; returns both URLs."""

    def make(*rights: str) -> tuple[str, str]:
        url = make_database(None)
        name = f"user_{url.rpartition('/')[2]}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(name)))
            for right in rights:
                connection.execute(sql.SQL(right).format(name=sql.Identifier(name)))  # type: ignore[arg-type]  # a test's own text
        place = url.partition("@")[2]
        return url, f"postgresql://{name}:x@{place}"

    return make


def test_owner_who_is_no_superuser_makes_the_role_and_reads_under_it(login: Callable[..., tuple[str, str]]) -> None:
    url, owner = login("ALTER ROLE {name} CREATEROLE")
    database_name = url.rpartition("/")[2]
    with psycopg.connect(url) as connection:
        user = sql.Identifier(f"user_{database_name}")
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(database_name), user))
        # As on a server of its own: the role that other tests made there is handed over.
        connection.execute(
            sql.SQL("GRANT {} TO {} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE").format(sql.Identifier(ROLE), user)
        )
    migrate(owner)
    insert_run(owner, "run-mine", MINE)
    insert_run(owner, "run-other", OTHER)
    database = TrajectoryDatabase(owner)
    create_token(database, "mine", ALL_SCOPES, ONLY_MINE, None)
    with database.connect() as connection:
        assert is_prepared(connection)
    with ServiceDatabase(database, 10).reading(ONLY_MINE) as connection:
        assert connection.execute("SELECT run_id FROM trajectory.trajectories").fetchall() == [("run-mine",)]
    assert len(database.rows("SELECT FROM trajectory.trajectories")) == 2


def test_owner_who_may_make_no_role_is_told_what_to_run(login: Callable[..., tuple[str, str]]) -> None:
    url, owner = login()
    database_name = url.rpartition("/")[2]
    with psycopg.connect(url) as connection:
        user = sql.Identifier(f"user_{database_name}")
        connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(database_name), user))
    migrate(owner)
    database = TrajectoryDatabase(owner)
    with pytest.raises(SinkError, match="GRANT trajectory_service TO"):
        create_token(database, "mine", ALL_SCOPES, ONLY_MINE, None)
    assert list_tokens(database) == []
    assert create_token(database, "all", ALL_SCOPES, None, None)


def test_other_users_see_and_write_as_before(login: Callable[..., tuple[str, str]]) -> None:
    """Policies would hide every row from those who do not own the tables, were they not made for them as well."""
    url, writer = login()
    migrate(url)
    with psycopg.connect(url) as connection:
        user = sql.Identifier(f"user_{url.rpartition('/')[2]}")
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA trajectory TO {}").format(user))
        connection.execute(
            sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA trajectory TO {}").format(user)
        )
    create_token(TrajectoryDatabase(url), "mine", ALL_SCOPES, ONLY_MINE, None)
    insert_run(writer, "run-mine", MINE)
    insert_run(writer, "run-other", OTHER)
    database = TrajectoryDatabase(writer)
    assert len(database.rows("SELECT FROM trajectory.trajectories")) == 2
    assert len(database.rows("UPDATE trajectory.trajectories SET agent_name = 'x' RETURNING run_id")) == 2
    with pytest.raises(SinkError, match="does not own"):
        create_token(database, "mine", ALL_SCOPES, ONLY_MINE, None)
    # One that hides rows is an error as before: what is hidden would look deleted.
    with psycopg.connect(url) as connection:
        connection.execute("CREATE POLICY theirs ON trajectory.trajectories AS RESTRICTIVE USING (false)")
    with pytest.raises(SinkError, match="row-level security"):
        database.rows("SELECT FROM trajectory.trajectories")


def test_user_who_owns_the_tables_no_more_is_refused_and_never_misled(login: Callable[..., tuple[str, str]]) -> None:
    """What a process knows of the owner lasts: it may lead to an error, and never to fewer rows."""
    url, former = login()
    migrate(url)
    insert_run(url, "run-other", OTHER)
    user = sql.Identifier(f"user_{url.rpartition('/')[2]}")
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA trajectory TO {}").format(user))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA trajectory TO {}").format(user))
        connection.execute(sql.SQL("ALTER TABLE trajectory.trajectories OWNER TO {}").format(user))
    database = TrajectoryDatabase(former)
    for _ in range(2):
        assert len(database.rows("SELECT FROM trajectory.trajectories")) == 1
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE trajectory.trajectories OWNER TO CURRENT_USER")
        connection.execute(sql.SQL("GRANT SELECT ON trajectory.trajectories TO {}").format(user))
        connection.execute("ALTER TABLE trajectory.trajectories ENABLE ROW LEVEL SECURITY")
        connection.execute("CREATE POLICY service_theirs ON trajectory.trajectories USING (false)")
    with pytest.raises(SinkError, match="row-level security"):
        database.rows("SELECT FROM trajectory.trajectories")


def test_migration_renews_the_role_where_it_is_in_use(make_database: Callable[[str | None], str]) -> None:
    """After an upgrade, the service may run as a user who may not."""
    url = make_database(None)
    migrate(url)
    with psycopg.connect(url) as connection:
        assert not is_prepared(connection)
    create_token(TrajectoryDatabase(url), "mine", ALL_SCOPES, ONLY_MINE, None)
    with psycopg.connect(url) as connection:
        connection.execute(f"DROP FUNCTION {NEWEST_WITH_WORDS}".encode())
        assert not is_prepared(connection)
    migrate(url)
    with psycopg.connect(url) as connection:
        assert is_prepared(connection)


def test_user_who_inherits_from_the_role_is_refused_and_never_misled(login: Callable[..., tuple[str, str]]) -> None:
    url, writer = login()
    migrate(url)
    create_token(TrajectoryDatabase(url), "mine", ALL_SCOPES, ONLY_MINE, None)
    insert_run(url, "run-other", OTHER)
    with psycopg.connect(url) as connection:
        user = sql.Identifier(f"user_{url.rpartition('/')[2]}")
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(ROLE), user))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA trajectory TO {}").format(user))
    with pytest.raises(SinkError, match="row-level security"):
        TrajectoryDatabase(writer).rows("SELECT FROM trajectory.trajectories")


def test_table_that_came_later_is_shown_when_the_service_starts(trajectory_database: str) -> None:
    """Without its policy, the role may not read it; and it never may before it has one."""
    database = TrajectoryDatabase(trajectory_database)
    create_token(database, "mine", ALL_SCOPES, ONLY_MINE, None)
    with psycopg.connect(trajectory_database) as connection:
        connection.execute(sql.SQL("REVOKE SELECT ON trajectory.verdicts FROM {}").format(sql.Identifier(ROLE)))
        connection.execute(sql.SQL("DROP POLICY {} ON trajectory.verdicts").format(sql.Identifier(POLICY)))
    with database.connect() as connection:
        assert not is_prepared(connection)
    make_service(make_settings(), Storage.at("unused", trajectory_database), loopback=True)
    with database.connect() as connection:
        assert is_prepared(connection)


def test_two_first_tokens_at_once(trajectory_database: str) -> None:
    database = TrajectoryDatabase(trajectory_database)
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(create_token(database, "x", ALL_SCOPES, ONLY_MINE, None)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 4
