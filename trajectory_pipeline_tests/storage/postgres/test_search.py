"""Search finds what the filters allow, never fewer than there are, in the stated order, and nothing that is deleted."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.errors import QueryError
from trajectory_pipeline.search.fusion import RANK_CONSTANT
from trajectory_pipeline.storage.postgres import search as module
from trajectory_pipeline.storage.postgres.search import (
    Evidence,
    SearchHit,
    SearchMode,
    contrast,
    search,
    why_words_only,
)
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline_tests.server_databases import create_database, drop_database
from trajectory_pipeline_tests.storage.postgres.searchable import NOON, Run, add_model, add_policy, add_runs

HYBRID, WORDS, MEANING = get_args(SearchMode)


@pytest.fixture(scope="module")
def database(_templates: EmbeddedServer) -> Iterator[psycopg.Connection]:
    """A migrated database with a current model and policy, and no runs."""
    create_database(_templates, "test_search", "template_trajectory")
    with psycopg.connect(_templates.url("test_search"), autocommit=True) as connection:
        add_model(connection)
        add_policy(connection)
        yield connection
    drop_database(_templates, "test_search")


@pytest.fixture
def connection(database: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The database, as it was before the test again after it."""
    with database.transaction(force_rollback=True):
        yield database


def ids(hits: Sequence[SearchHit]) -> list[str]:
    return [hit.run_id for hit in hits]


# --- the property -------------------------------------------------------------------------------------------------

VOCABULARY = ("refund", "parcel", "late", "address", "train", "the")
NOBODY = Tenants(frozenset(), frozenset())
_words = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=6)
_numbers = st.sampled_from((-1.0, 0.0, 1.0, 2.0))
_vectors = st.tuples(_numbers, _numbers, _numbers).filter(any)
_runs = st.lists(
    st.builds(
        dict,
        text=_words.map(" ".join),
        vector=st.none() | _vectors,
        agent_id=st.sampled_from(("agent-a", "agent-b")),
        organization_id=st.sampled_from(("org-a", "org-b", None)),
        deleted=st.sampled_from((False, False, False, True)),
        judged_outcome=st.sampled_from((None, "success", "failure")),
        tools=st.sampled_from(((), ("lookup",), ("lookup", "refund"))),
        end_time=st.sampled_from((NOON, NOON + timedelta(days=1))),
        heuristic_outcome=st.sampled_from(("success", "failure", "unknown")),
        task_family=st.sampled_from((None, "family-a", "family-b")),
    ),
    max_size=9,
).map(lambda runs: [Run(f"run-{place}", **run) for place, run in enumerate(runs)])
_filters = st.builds(
    SearchFilters,
    agent_ids=st.sampled_from(((), (), ("agent-a",))),
    organization_ids=st.sampled_from(((), (), ("org-b",), ("org-a", "org-b"))),
    tenants=st.sampled_from((None, None, Tenants(frozenset({"org-a"}), frozenset({"agent-b"})), NOBODY)),
    outcomes=st.sampled_from(((), (), ("failure",), ("failure", "success"))),
    tools=st.sampled_from(((), (), ("refund",))),
    completed_from=st.sampled_from((None, None, NOON + timedelta(hours=1))),
    task_family=st.sampled_from((None, None, "family-a")),
)
_queries = st.builds(
    lambda words, phrase, excluded: (words, phrase, excluded),
    st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4),
    st.sampled_from((None, None, None, ("late", "parcel"))),
    st.sampled_from((None, None, None, "the")),
)
_several = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _query(words: Sequence[str], phrase: Sequence[str] | None, excluded: str | None) -> str:
    quoted = [f'"{" ".join(phrase)}"'] if phrase else []
    return " ".join([*words, *quoted, *([f"-{excluded}"] if excluded else [])])


def _has(text: str, term: str | tuple[str, ...]) -> bool:
    words, phrase = text.split(), (term,) if isinstance(term, str) else term
    return any(tuple(words[at : at + len(phrase)]) == phrase for at in range(len(words)))


def _is_of(run: Run, tenants: Tenants | None) -> bool:
    return tenants is None or run.organization_id in tenants.organizations or run.agent_id in tenants.agents


class Oracle:
    """All that search does, by looking at each run."""

    def __init__(self, runs: Sequence[Run], asked: tuple[Any, Any, Any], filters: SearchFilters) -> None:
        words, phrase, excluded = asked
        self.terms: list[Any] = list(dict.fromkeys([*words, *([tuple(phrase)] if phrase else [])]))
        self.runs = {run.run_id: run for run in runs}
        self.allowed = [
            run
            for run in runs
            if not run.deleted
            and (not filters.agent_ids or run.agent_id in filters.agent_ids)
            and (not filters.organization_ids or run.organization_id in filters.organization_ids)
            and _is_of(run, filters.tenants)
            and (not filters.outcomes or run.judged_outcome in filters.outcomes)
            and (not filters.tools or set(filters.tools) & set(run.tools))
            and (filters.completed_from is None or run.end_time >= filters.completed_from)
            and (phrase is None or _has(str(run.text), tuple(phrase)))
            and (excluded is None or not _has(str(run.text), excluded))
            and (filters.task_family is None or run.task_family == filters.task_family)
        ]
        # Words are counted in what the client may see, deleted or not.
        seen = [run for run in runs if _is_of(run, filters.tenants)]
        counts = [sum(_has(str(run.text), term) for run in seen) for term in self.terms]
        self.weights = [math.log(1 + (len(seen) - count + 0.5) / (count + 0.5)) for count in counts]

    def words(self) -> dict[str, float]:
        scores = {}
        for run in self.allowed:
            found = [weight for term, weight in zip(self.terms, self.weights, strict=True) if _has(str(run.text), term)]
            if found:
                scores[run.run_id] = sum(found) / (1 + math.log(len(set(str(run.text).split()))))
        return scores

    def meaning(self, query: Sequence[float]) -> dict[str, float]:
        return {
            run.run_id: sum(a * b for a, b in zip(run.vector, query, strict=True))
            / math.hypot(*run.vector)
            / math.hypot(*query)
            for run in self.allowed
            if run.vector is not None
        }


def _assert_list(found: dict[str, tuple[int, float]], expected: dict[str, float]) -> None:
    """Ranks from 1 by score, ties by run id, scores as expected, and all of what is expected."""
    assert set(found) == set(expected)
    for run_id, (_, score) in found.items():
        assert score == pytest.approx(expected[run_id], abs=1e-5)
    ordered = sorted(found, key=lambda run_id: (-found[run_id][1], run_id))
    assert [found[run_id][0] for run_id in ordered] == list(range(1, len(found) + 1))


@_several
@given(runs=_runs, asked=_queries, filters=_filters, query_vector=_vectors)
@example(
    runs=[Run("run-1", "late parcel", (1, 0, 0)), Run("run-0", "parcel late", (1, 0, 0))],
    asked=(["late"], ("late", "parcel"), None),
    filters=SearchFilters(),
    query_vector=(1, 0, 0),
)
def test_all_of_what_matches_is_found_in_the_stated_order(
    database: psycopg.Connection,
    runs: list[Run],
    asked: tuple[Any, Any, Any],
    filters: SearchFilters,
    query_vector: Sequence[float],
) -> None:
    oracle, query = Oracle(runs, asked, filters), _query(*asked)
    by_words, by_meaning = oracle.words(), oracle.meaning(query_vector)
    with database.transaction(force_rollback=True):
        add_runs(database, runs)
        found = {
            mode: search(database, query, 20, filters, mode=mode, query_vector=query_vector)
            for mode in (HYBRID, WORDS, MEANING)
        }
        first = search(database, query, 2, filters, query_vector=query_vector)
    _assert_list({hit.run_id: (hit.rank, hit.words_score or 0) for hit in found[WORDS]}, by_words)
    _assert_list({hit.run_id: (hit.rank, hit.similarity or 0) for hit in found[MEANING]}, by_meaning)
    hybrid = found[HYBRID]
    assert set(ids(hybrid)) == by_words.keys() | by_meaning.keys()
    ranks = {WORDS: {hit.run_id: hit.rank for hit in found[WORDS]}}
    ranks[MEANING] = {hit.run_id: hit.rank for hit in found[MEANING]}
    for hit in hybrid:
        assert (hit.words_rank, hit.meaning_rank) == tuple(ranks[mode].get(hit.run_id) for mode in (WORDS, MEANING))
        places = [place for place in (hit.words_rank, hit.meaning_rank) if place is not None]
        assert hit.score == pytest.approx(sum(1 / (RANK_CONSTANT + place) for place in places))
    assert ids(hybrid) == [hit.run_id for hit in sorted(hybrid, key=lambda hit: (-hit.score, hit.run_id))]
    assert first == hybrid[:2]


@_several
@given(
    runs=_runs,
    asked=_queries,
    filters=_filters,
    query_vector=st.none() | _vectors,
    k=st.integers(1, 5),
    few=st.integers(0, 3),
)
def test_where_there_are_many_runs_never_fewer_are_found_than_asked_for(
    database: psycopg.Connection,
    runs: list[Run],
    asked: tuple[Any, Any, Any],
    filters: SearchFilters,
    query_vector: Sequence[float] | None,
    k: int,
    few: int,
) -> None:
    oracle, query = Oracle(runs, asked, filters), _query(*asked)
    matching = oracle.words().keys() | (oracle.meaning(query_vector).keys() if query_vector else set())
    with pytest.MonkeyPatch.context() as patched, database.transaction(force_rollback=True):
        for name in ("EXACT_RUNS", "EXACT_RUNS_BESIDE_INDEX", "RANKED_MATCHES", "_CANDIDATES", "_DEPTH"):
            patched.setattr(module, name, few)
        add_runs(database, runs)
        found = ids(search(database, query, k, filters, query_vector=query_vector))
    assert len(found) == len(set(found)) == min(k, len(matching))
    assert set(found) <= matching


@_several
@given(
    runs=_runs,
    asked=_queries,
    agent_ids=st.sampled_from(((), ("agent-a",))),
    query_vector=st.none() | _vectors,
    k=st.integers(1, 4),
    first_look=st.integers(0, 9),
    pool=st.integers(0, 9),
    pool_of_few=st.integers(0, 9),
)
def test_a_contrast_has_all_of_both_outcomes_and_those_with_a_verdict_first(
    database: psycopg.Connection,
    runs: list[Run],
    asked: tuple[Any, Any, Any],
    agent_ids: tuple[str, ...],
    query_vector: Sequence[float] | None,
    k: int,
    first_look: int,
    pool: int,
    pool_of_few: int,
) -> None:
    filters = SearchFilters(agent_ids=agent_ids)
    oracle, query = Oracle(runs, asked, filters), _query(*asked)
    matching = oracle.words().keys() | (oracle.meaning(query_vector).keys() if query_vector else set())
    with pytest.MonkeyPatch.context() as patched, database.transaction(force_rollback=True):
        patched.setattr(module, "_FIRST_LOOK", first_look)
        patched.setattr(module, "_POOL", pool)
        patched.setattr(module, "_POOL_OF_FEW", pool_of_few)
        patched.setattr(module, "_DEPTH", pool)
        add_runs(database, runs)
        found = contrast(database, query, k, filters, query_vector=query_vector)
    for outcome, side in (("success", found.successes), ("failure", found.failures)):
        judged = {run_id for run_id in matching if oracle.runs[run_id].judged_outcome == outcome}
        by_rule = {
            run_id
            for run_id in matching
            if oracle.runs[run_id].judged_outcome is None and oracle.runs[run_id].heuristic_outcome == outcome
        }
        assert len(side) == len(set(ids(side))) == min(k, len(judged) + len(by_rule))
        assert [hit.rank for hit in side] == list(range(1, len(side) + 1))
        with_verdict = [hit.judged_outcome == outcome for hit in side]
        assert sum(with_verdict) == min(k, len(judged))
        assert with_verdict == sorted(with_verdict, reverse=True)
        assert set(ids(side)) <= judged | by_rule


# --- what is found ------------------------------------------------------------------------------------------------


def test_a_deleted_run_is_not_found(connection: psycopg.Connection) -> None:
    add_runs(connection, [Run("run-1", "refund", (1, 0, 0), deleted=True), Run("run-2", "refund", (0, 1, 0))])
    assert ids(search(connection, "refund", query_vector=(1, 0, 0))) == ["run-2"]


def test_a_run_that_the_role_may_not_see_is_not_found(connection: psycopg.Connection) -> None:
    add_runs(connection, [Run("run-1", "refund", (1, 0, 0)), Run("run-2", "refund", (0, 1, 0), agent_id="agent-b")])
    connection.execute("ALTER TABLE trajectory.trajectories ENABLE ROW LEVEL SECURITY")
    connection.execute("CREATE POLICY seen ON trajectory.trajectories USING (agent_id = 'agent-b')")
    connection.execute("CREATE ROLE searcher")
    connection.execute("GRANT USAGE ON SCHEMA trajectory TO searcher")
    connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA trajectory TO searcher")
    connection.execute("ALTER VIEW trajectory.outcomes SET (security_invoker = true)")
    connection.execute("SET LOCAL ROLE searcher")
    assert ids(search(connection, "refund", query_vector=(1, 0, 0))) == ["run-2"]


def test_a_hit_has_heuristic_and_judged_outcome_apart_with_evidence_and_lesson(connection: psycopg.Connection) -> None:
    cited = {"message_id": "message-1", "quote": "refused", "source": "tool", "valid": True, "problem": None}
    invalid = cited | {"quote": "made up", "valid": False, "problem": "the quote does not stand there"}
    requirement = {"statement": "The refund is booked", "status": "unmet", "evidence": [cited, invalid]}
    judged = Run(
        "run-1", "refund " * 80, judged_outcome="failure", lesson="ask for the order", requirements=[requirement]
    )
    add_runs(connection, [judged, Run("run-2", "refund address train")])
    first, second = search(connection, "refund")
    assert (first.heuristic_outcome, first.judged_outcome, first.confidence) == ("success", "failure", 0.9)
    assert first.lesson == "ask for the order"
    assert first.evidence == (Evidence("The refund is booked", "unmet", "message-1", "refused", "tool"),)
    assert (second.judged_outcome, second.confidence, second.lesson, second.evidence) == (None, None, None, ())


def test_a_filter_by_outcome_finds_judged_runs_only(connection: psycopg.Connection) -> None:
    add_runs(connection, [Run("run-1", "refund"), Run("run-2", "refund", judged_outcome="success")])
    assert ids(search(connection, "refund", filters=SearchFilters(outcomes=("success",)))) == ["run-2"]
    heuristic = SearchFilters(heuristic_outcomes=("success",))
    assert ids(search(connection, "refund", filters=heuristic)) == ["run-1", "run-2"]


def test_a_contrast_shows_how_similar_runs_came_out_and_why(connection: psycopg.Connection) -> None:
    runs = [
        Run("run-1", "refund late parcel", judged_outcome="failure", lesson="look up the order first"),
        Run("run-2", "refund late parcel", judged_outcome="success", lesson="cite the rule"),
        Run("run-3", "refund late parcel", judged_outcome="partial_success"),
        Run("run-4", "refund late parcel", heuristic_outcome="failure"),
        Run("run-5", "train", judged_outcome="failure"),
    ]
    add_runs(connection, runs)
    found = contrast(connection, "late parcel")
    assert [(hit.run_id, hit.judged_outcome, hit.lesson) for hit in found.successes] == [
        ("run-2", "success", "cite the rule")
    ]
    assert [(hit.run_id, hit.judged_outcome, hit.confidence, hit.lesson) for hit in found.failures] == [
        ("run-1", "failure", 0.9, "look up the order first"),
        ("run-4", None, None, None),
    ]


def test_a_contrast_takes_no_filter_by_outcome(connection: psycopg.Connection) -> None:
    with pytest.raises(QueryError, match="outcomes of its own"):
        contrast(connection, "refund", filters=SearchFilters(outcomes=("failure",)))


@pytest.mark.parametrize(
    "filters",
    [
        SearchFilters(task_family="family-b"),
        SearchFilters(agent_ids=("agent-b", "agent-c")),
        SearchFilters(organization_ids=("org-b",)),
        SearchFilters(completed_from=NOON + timedelta(hours=1)),
        SearchFilters(completed_from=NOON, completed_to=NOON + timedelta(days=9), tags=("urgent",)),
        SearchFilters(tools=("lookup", "other")),
        SearchFilters(failure_modes=("tool_misuse",)),
    ],
)
def test_a_filter_allows_what_has_any_of_its_values(connection: psycopg.Connection, filters: SearchFilters) -> None:
    other = Run(
        "run-2",
        "refund",
        agent_id="agent-b",
        organization_id="org-b",
        end_time=NOON + timedelta(days=1),
        tags=("urgent", "more"),
        tools=("lookup",),
        judged_outcome="failure",
        failure_mode="tool_misuse",
        task_family="family-b",
    )
    add_runs(connection, [Run("run-1", "refund"), other])
    (hit,) = search(connection, "refund", filters=filters)
    assert (hit.run_id, hit.task_family) == ("run-2", "family-b")


def test_a_rare_word_counts_more_than_a_frequent_one(connection: psycopg.Connection) -> None:
    often = [Run(f"run-{n}", f"parcel refund n{n}") for n in range(8)]
    add_runs(connection, [*often, Run("run-x", "address n1"), Run("run-y", "parcel n8")])
    assert ids(search(connection, "parcel address", 2)) == ["run-x", "run-y"]


def test_or_makes_phrases_alternatives(connection: psycopg.Connection) -> None:
    add_runs(connection, [Run("run-1", "late parcel"), Run("run-2", "parcel late"), Run("run-3", "train")])
    assert ids(search(connection, '"late parcel" or train')) == ["run-3", "run-1"]
    assert ids(search(connection, '"late parcel" train')) == ["run-1"]


# --- odd queries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("a\0b", "NUL"),
        ("\ud83d", "surrogate"),
        ("x" * 2_001, "2,001 characters"),
        ("&|!<->():*", "no word"),
        ("-refund", "no word"),
        ('""', "no word"),
    ],
)
def test_a_query_that_cannot_be_used_is_refused_with_a_reason(
    connection: psycopg.Connection, query: str, said: str
) -> None:
    with pytest.raises(QueryError, match=said):
        search(connection, query)


@pytest.mark.parametrize("query", ["😀", "退款", "退款 被拒绝", "the", "or", "re-book", "o'neil", 'say "退款'])
def test_words_of_any_language_are_found_as_they_stand_in_the_text(connection: psycopg.Connection, query: str) -> None:
    add_runs(
        connection, [Run("run-1", f"the or 😀 退款 re-book o'neil {query.replace(chr(34), '')}"), Run("run-2", "no")]
    )
    assert ids(search(connection, query)) == ["run-1"]


def test_a_query_without_words_is_found_by_meaning(connection: psycopg.Connection) -> None:
    add_runs(connection, [Run("run-1", "late parcel", (1, 0, 0)), Run("run-2", "parcel", (0, 1, 0))])
    assert ids(search(connection, "&|!", query_vector=(1, 0, 0))) == ["run-1", "run-2"]
    assert ids(search(connection, "-late", query_vector=(1, 0, 0))) == ["run-2"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(max_size=60) | st.text(alphabet="ab\"'-|&!()<>:*\\ or", max_size=30))
def test_any_text_finds_or_is_refused(database: psycopg.Connection, query: str) -> None:
    with contextlib.suppress(QueryError):
        assert search(database, query, query_vector=(1, 0, 0)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "1 to 1,000"),
        ({"k": 1_001}, "1 to 1,000"),
        ({"mode": "both"}, "no mode"),
        ({"mode": "meaning"}, "embedding"),
        ({"query_vector": (0, 0, 0)}, "no direction"),
        ({"query_vector": (math.nan, 0, 0)}, "no direction"),
        ({"query_vector": (1, 0)}, "2 dimensions"),
        ({"filters": SearchFilters(agent_ids=("a\0",))}, "agent_ids"),
        ({"filters": SearchFilters(completed_from=datetime(2026, 1, 1))}, "time zone"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    connection: psycopg.Connection, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(QueryError, match=said):
        search(connection, "refund", **change)


# --- without pgvector or a model ----------------------------------------------------------------------------------


def test_without_a_model_words_are_searched_and_it_is_said_what_to_install(
    trajectory_database: str,
) -> None:
    with psycopg.connect(trajectory_database) as connection:
        add_runs(connection, [Run("run-1", "refund")])
        assert ids(search(connection, "refund")) == ["run-1"]
        assert "trajectory-pipeline[embeddings]" in str(why_words_only(connection))
        with pytest.raises(QueryError, match="no embeddings yet"):
            search(connection, "refund", query_vector=(1, 0, 0))


def test_without_pgvector_words_are_searched_and_it_is_said_what_to_install(trajectory_database: str) -> None:
    with psycopg.connect(trajectory_database) as connection:
        connection.execute("DROP EXTENSION vector CASCADE")
        add_runs(connection, [Run("run-1", "refund")])
        assert ids(search(connection, "refund")) == ["run-1"]
        assert "CREATE EXTENSION vector" in str(why_words_only(connection))
        with pytest.raises(QueryError, match="CREATE EXTENSION vector"):
            search(connection, "refund", query_vector=(1, 0, 0))
