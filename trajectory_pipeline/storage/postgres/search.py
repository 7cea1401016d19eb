"""Search over trajectories: by words, by meaning, or both lists fused; each result with its outcome and lesson.

What is found depends on the connection: rows that its role may not see are not found. Deleted runs never are. A
search takes one transaction, and changes nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from itertools import accumulate, islice
from typing import Any, Literal

import orjson
import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from trajectory_pipeline.errors import QueryError
from trajectory_pipeline.schema.enums import Outcome
from trajectory_pipeline.search.fusion import fuse_ranks
from trajectory_pipeline.search.query import WordQuery, check_query, quoted_phrases, word_query
from trajectory_pipeline.search.snippet import snippet
from trajectory_pipeline.storage.postgres.current_verdicts import OUTCOMES
from trajectory_pipeline.storage.postgres.meaning_index import SPACE, CurrentModel, SearchedSpace, as_space, find_space
from trajectory_pipeline.storage.postgres.pgvector import PgVector
from trajectory_pipeline.storage.postgres.recent_counts import RecentCounts
from trajectory_pipeline.storage.postgres.search_filters import SearchFilters, filter_conditions, tenant_conditions
from trajectory_pipeline.storage.postgres.service_role import NEWEST_WITH_WORDS, ROLE
from trajectory_pipeline.storage.postgres.word_frequencies import READ_WORDS, Frequency, document_frequencies

SearchMode = Literal["hybrid", "words", "meaning"]
"""Both lists, fused; or one of them."""

MOST_RESULTS = 1_000
_DEPTH = 100
"""Places of each list that are fused, at the least."""
EXACT_RUNS = 20_000
"""Up to so many runs that pass the filters, both lists are made from all of them."""
EXACT_RUNS_OF_ORGANIZATION = 60_000
"""The same of whole organizations by meaning, where an index holds the embeddings of each together."""
EXACT_RUNS_BESIDE_INDEX = 5_000
"""The same where an index has all that is asked for: it answers sooner than more runs can be looked up."""
RANKED_MATCHES = 300
"""Of a word that more texts have, so many are ranked: the newest ones."""
_CANDIDATES = 10_000
"""Texts that have one of the words by which candidates are found, at most, as estimated."""
_CANDIDATES_OF_SCOPE = 2_000
"""The same of whole tenants: each text is found by two indexes, and the newest few are ranked anyway."""
LOOKED_AT = 20
"""So many runs of an organization are looked at for each one that is to pass the filters, at first."""
_LEAST_WORK_MEM = "32MB"
"""Memory of a statement's step, at the least: with 4 MB, as Postgres has it, a bitmap of an organization's 10,000 texts
knows only their pages, and each text on these is read."""
_LEAST_EF, _MOST_EF = 200, 1_000
"""Candidates of a scan of the index (``hnsw.ef_search``): more are slower, and miss fewer."""
_FIRST_LOOK, _POOL = 50, 200
"""So many similar runs are looked through for successes and failures first, and then."""
_POOL_OF_FEW = 2_000
"""Where few runs pass the filters, so many are looked through, before each side is searched on its own."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A quote that the verdict rests on, found in the trajectory when it was judged.

    Attributes:
        claim: the requirement, or None where it shows the failure.
        status: of the requirement; None where it shows the failure.
        message_id: the message that is quoted.
        source: whose words these are.
    """

    claim: str | None
    status: str | None
    message_id: str
    quote: str
    source: str | None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One run that was found.

    Attributes:
        rank: from 1.
        score: what the ranking is by: the fused score, or that of the only list. Not comparable between searches.
        words_rank: its place among the texts with the query's words; None where it is not there.
        words_score: the query's words that it has, weighted by rareness, per length.
        meaning_rank: its place by meaning; None where it is not there.
        similarity: cosine similarity to the query by the current model, −1 to 1.
        source: where it came from: `letta`, or one in `TRAJECTORY_SOURCES`.
        heuristic_outcome: by rule, from how the run ended.
        judged_outcome: what the verdict under the current policy says; None without a verdict.
        confidence: of the judged outcome, 0–1.
        simulated: whether the verdict is of a simulated judge, which is no model.
        summary: goal, approach and result, in the judge's words.
        lesson: what another agent should do or avoid, in the judge's words.
        evidence: quotes that the verdict rests on.
        snippet: a passage of the search text, around the query's words.
    """

    run_id: str
    rank: int
    score: float
    words_rank: int | None
    words_score: float | None
    meaning_rank: int | None
    similarity: float | None
    source: str
    agent_id: str
    agent_name: str | None
    organization_id: str | None
    end_time: datetime | None
    execution_status: str
    heuristic_outcome: str
    heuristic_confidence: float
    verdict_status: str | None
    judged_outcome: str | None
    confidence: float | None
    simulated: bool
    failure_owner: str | None
    failure_mode: str | None
    summary: str | None
    lesson: str | None
    evidence: tuple[Evidence, ...]
    task_family: str | None
    snippet: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """Runs of similar tasks that came out differently, most similar first; those with a verdict before all others."""

    successes: list[SearchHit]
    failures: list[SearchHit]


_NO_FILTERS = SearchFilters()
_NAMED = (
    *("agent_ids", "organization_ids", "project_ids", "sources", "tools", "models", "failure_modes", "tags"),
    "task_family",
)
# In one process: to start others takes longer than they save, and twice the processor time.
_OPENING = f"""
SELECT set_config('max_parallel_workers_per_gather', '0', true),
    set_config('work_mem', CASE
        WHEN pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('{_LEAST_WORK_MEM}') THEN '{_LEAST_WORK_MEM}'
        ELSE current_setting('work_mem') END, true),
    websearch_to_tsquery('pg_catalog.simple', %(query)s)::text,
    ARRAY(SELECT phraseto_tsquery('pg_catalog.simple', phrase)::text FROM unnest(%(phrases)s::text[]) phrase),
    current_user = '{ROLE}', space.*
FROM ({SPACE}) space"""
# What is in a long text by chance counts less, as in BM25. A rank function of Postgres knows no rareness.
_SCORE = "({weights}) / (1 + ln(length(s.words)))"
_WORDS = """
WITH {scope}, candidates AS ({candidates})
SELECT s.run_id, {score} AS score
FROM (SELECT s.run_id, {words} FROM candidates JOIN trajectory.search_texts s USING (run_id) OFFSET 0) s
WHERE s.words @@ %(any)s::tsquery
ORDER BY score DESC, s.run_id LIMIT %(depth)s"""
# Of few runs, both lists at once: the runs are looked up once, and each statement takes a round trip.
_AMONG_FEW = """
WITH allowed AS MATERIALIZED ({runs} LIMIT %(few)s + 1),
counted AS MATERIALIZED (SELECT count(*) AS runs FROM {counted})
SELECT 0 AS list, NULL::text AS run_id, runs::float8 AS score, 0::bigint AS place FROM counted
{lists} ORDER BY list, place"""
_WORDS_AMONG_FEW = """
UNION ALL SELECT 1, run_id, score, row_number() OVER (ORDER BY score DESC, run_id) FROM (
    SELECT s.run_id, {score} AS score FROM (
        SELECT s.run_id, {words} FROM allowed JOIN trajectory.search_texts s USING (run_id)
        WHERE (SELECT runs FROM counted) <= %(few)s OFFSET 0) s
    WHERE s.words @@ %(any)s::tsquery
    ORDER BY score DESC, s.run_id LIMIT %(depth)s) words"""
# By an index alone: only few of them are looked up.
_COUNTED_APART = "({runs} LIMIT %(most)s + 1) counted"
_MEANING_AMONG_FEW = """
UNION ALL SELECT 2, run_id, 1 - distance, row_number() OVER (ORDER BY distance, run_id) FROM (
    SELECT e.run_id, e.embedding {distance} %(vector)s::{halfvec} AS distance
    FROM allowed JOIN trajectory.trajectory_embeddings e USING (run_id)
    WHERE (SELECT runs FROM counted) <= %(few)s AND e.model_id = {model} AND e.embedding IS NOT NULL
    ORDER BY distance, e.run_id LIMIT %(depth)s) meaning"""
_NEWEST = """
(SELECT s.run_id FROM allowed JOIN trajectory.search_texts s USING (run_id) WHERE s.words @@ {query}::tsquery{of_texts}
ORDER BY s.partition_key DESC, s.run_id LIMIT %(bound)s)"""
# Of words that few texts have, or none, Postgres expects too many, and would read all texts in order of time.
_NEWEST_OF_FEW = """
(SELECT m.run_id FROM (
    SELECT s.run_id, s.partition_key FROM trajectory.search_texts s WHERE s.words @@ {query}::tsquery{of_texts}
    ORDER BY s.partition_key DESC, s.run_id OFFSET 0) m
CROSS JOIN LATERAL ({runs} AND t.run_id = m.run_id OFFSET 0) t
ORDER BY m.partition_key DESC, m.run_id LIMIT %(bound)s)"""
_NEWEST_OF_CLIENT = (
    f"SELECT run_id FROM {NEWEST_WITH_WORDS}({{query}}::tsquery, %(bound)s::bigint, %(are_few)s::boolean) AS run_id"
)
# The function knows no filters, and gives the newest first.
_NEWEST_OF_CLIENT_WITHIN = f"""
(SELECT t.run_id FROM (
    SELECT run_id FROM {NEWEST_WITH_WORDS}({{query}}::tsquery, %(looked_at)s::bigint, %(are_few)s::boolean) AS run_id
    OFFSET 0) m
CROSS JOIN LATERAL ({{runs}} AND t.run_id = m.run_id OFFSET 0) t LIMIT %(bound)s)"""
_NEAREST = """
WITH {scope}
SELECT e.run_id, e.embedding {distance} %(vector)s::{halfvec} AS distance
FROM allowed JOIN trajectory.trajectory_embeddings e USING (run_id)
WHERE e.model_id = {model} AND e.embedding IS NOT NULL{of_embeddings}
ORDER BY distance, e.run_id LIMIT %(depth)s"""
# Without reading all runs too; some may be deleted.
_NEAREST_WITH_DELETED = """
SELECT e.run_id, e.embedding {distance} %(vector)s::{halfvec} AS distance
FROM trajectory.trajectory_embeddings e
WHERE e.model_id = {model} AND e.embedding IS NOT NULL{of_embeddings}
ORDER BY distance, e.run_id LIMIT %(looked_at)s"""
_NEAREST_OF_WHOLE = f"""
SELECT e.run_id, e.distance FROM ({_NEAREST_WITH_DELETED} OFFSET 0) e
CROSS JOIN LATERAL ({{runs}} AND t.run_id = e.run_id OFFSET 0) t
ORDER BY e.distance, e.run_id LIMIT %(depth)s"""
# Runs that do not pass the filters are passed over until there are enough, or 20,000 were looked at. In strict order,
# the index would leave out what it finds late, which is up to half of the nearest where few pass.
_INDEX_SCAN = """
SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)"""
# With the zero, Postgres does not take the rows for sorted by distance already.
_NEAREST_BY_INDEX = """
SELECT e.run_id, e.distance FROM (
    SELECT e.run_id, e.embedding::{halfvec}({dimensions}) {distance} %(vector)s::{halfvec} AS distance
    FROM trajectory.trajectory_embeddings e
    WHERE e.model_id = {model} AND e.embedding IS NOT NULL{of_embeddings}
        AND EXISTS ({runs} AND t.run_id = e.run_id)
    ORDER BY e.embedding::{halfvec}({dimensions}) {distance} %(vector)s::{halfvec} LIMIT %(places)s) e
ORDER BY e.distance + 0, e.run_id"""
_DETAILS = f"""
SELECT o.run_id, o.source, o.agent_id, o.agent_name, o.organization_id, o.end_time, o.execution_status,
    o.heuristic_outcome, o.heuristic_confidence, o.verdict_status, o.outcome AS judged_outcome,
    o.outcome_confidence AS confidence, coalesce(o.simulated, false) AS simulated, o.failure_owner, o.failure_mode,
    o.summary, o.lesson, o.requirements, o.failure, s.text, f.family_id AS task_family
FROM {OUTCOMES} o LEFT JOIN trajectory.search_texts s USING (run_id)
LEFT JOIN trajectory.task_family_runs f USING (run_id) WHERE o.run_id = ANY(%s)"""
_OUTCOMES = f"SELECT run_id, outcome, heuristic_outcome FROM {OUTCOMES} o WHERE run_id = ANY(%s)"


@dataclass(frozen=True, slots=True)
class _Scope:
    """The runs that may be found.

    Attributes:
        runs: a query for their ids.
        parameters: of the query.
        filtered: whether anything but deleted runs is left out.
        filters: what is asked for.
        whole: whether these are all runs of agents or organizations.
        of_organizations: whether these are all runs of organizations, of whichever agent.
        only_tenants: whether these are all runs of the client's tenants.
        of_client: the same query without the client's tenants.
        all_of_tenants: all runs of the organizations of which these are a part; None where they are of single agents.
        narrowed: whether a contrast asks for one outcome of many of them.
    """

    runs: str
    parameters: dict[str, Any]
    filtered: bool
    filters: SearchFilters
    whole: bool
    of_organizations: bool
    only_tenants: bool
    of_client: str
    all_of_tenants: "_Scope | None" = None
    narrowed: bool = False

    @property
    def cte(self) -> str:
        return f"allowed AS NOT MATERIALIZED ({self.runs})"

    def also_of(self, table: str, *, as_client: bool = False) -> str:
        """Return what the filters say of agents and organizations, of search texts or embeddings, as more conditions.

        ``as_client``: without the client's tenants.
        """
        filters = replace(self.filters, tenants=None) if as_client else self.filters
        return "".join(f" AND {one}" for one in tenant_conditions(filters, table)[0])


@dataclass(frozen=True, slots=True)
class _Question:
    """A query, taken apart once for all lists.

    Attributes:
        weights: how rare each term is.
        space: None where nothing is searched by meaning.
        as_client: whether the role of clients with tenants asks, which finds words by a function.
    """

    mode: SearchMode
    words: WordQuery
    weights: Mapping[str, Frequency]
    space: "_Space | None"
    as_client: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Runs with their scores, best first, and both lists that these come from.

    ``few``: how many runs were looked at, each of them; None where there are too many.
    """

    scores: Mapping[str, float]
    by_words: Mapping[str, float]
    by_meaning: Mapping[str, float]
    few: int | None = None

    def items(self, k: int) -> dict[str, dict[str, Any]]:
        """Return the first runs, each with its ranking."""
        return self.rankings(islice(self.scores, k))

    def rankings(self, run_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the fields of a hit that say why a run is where it is, for some of the runs."""
        words_ranks, meaning_ranks = _ranks(self.by_words), _ranks(self.by_meaning)
        return {
            run_id: {
                "score": self.scores[run_id],
                "words_rank": words_ranks.get(run_id),
                "words_score": self.by_words.get(run_id),
                "meaning_rank": meaning_ranks.get(run_id),
                "similarity": self.by_meaning.get(run_id),
            }
            for run_id in run_ids
        }


@dataclass(frozen=True, slots=True)
class _Space:
    """The vector space of the current model, and the query in it."""

    pgvector: PgVector
    model: CurrentModel
    vector: str

    @property
    def parts(self) -> dict[str, sql.Composable]:
        """What a statement about embeddings is made of."""
        return {
            "halfvec": self.pgvector.halfvec,
            "distance": self.pgvector.cosine_distance,
            "model": sql.Literal(self.model.model_id),
            "dimensions": sql.Literal(self.model.dimensions),
        }


def search(
    connection: psycopg.Connection,
    query: str,
    k: int = 10,
    filters: SearchFilters = _NO_FILTERS,
    *,
    mode: SearchMode = "hybrid",
    query_vector: Sequence[float] | None = None,
    recent: RecentCounts | None = None,
) -> list[SearchHit]:
    """Return the runs that a query describes, best first; ``min(k, what matches)`` of them, ties by run id.

    What matches has any of the query's words or, where there is a query vector, an embedding; it passes the filters,
    has each phrase in quotation marks, and has no word with a minus before it.

    Args:
        connection: to a migrated database; the search is in its transaction, or in one of its own.
        query: words, ``"phrases"``, ``-exclusions``, ``or``; a description in plain words is best for meaning.
        k: most runs to return, 1 to 1,000.
        filters: which runs may be found.
        mode: ``hybrid`` without a query vector is ``words``.
        query_vector: the query's embedding by the current model.
        recent: what was counted lately, and need not be counted again. The connection sees the runs of the filters'
            tenants, and no others.

    Raises:
        QueryError: the query or a filter cannot be used; the text says why.
        psycopg.Error: the database refuses.
    """
    _check(k, filters, mode, query_vector)
    with _transaction(connection):
        question = _question(connection, query, mode, query_vector, _counting(connection, recent, filters))
        found = _find(connection, question, _scope(filters, question.words), k, recent=recent)
        chosen = found.items(k)
        return _hits(_details(connection, list(chosen)), question.words, chosen)


def contrast(
    connection: psycopg.Connection,
    query: str,
    k: int = 3,
    filters: SearchFilters = _NO_FILTERS,
    *,
    mode: SearchMode = "hybrid",
    query_vector: Sequence[float] | None = None,
    recent: RecentCounts | None = None,
) -> Contrast:
    """Return ``k`` runs of what a query describes that succeeded, and ``k`` that failed; fewer where there are fewer.

    By verdict: partial successes are on neither side. Where fewer than ``k`` verdicts say so, runs without a verdict
    whose heuristic outcome says so come after them. On each side, the most similar runs come first.

    Args:
        connection: to a migrated database, as for ``search``.
        query: what to look for, as for ``search``.
        k: most runs of each side, 1 to 1,000.
        filters: which runs may be found; without outcomes.
        mode: as for ``search``.
        query_vector: the query's embedding by the current model.
        recent: as for ``search``.

    Raises:
        QueryError: the query or a filter cannot be used; the text says why.
        psycopg.Error: the database refuses.
    """
    _check(k, filters, mode, query_vector)
    if filters.outcomes or filters.heuristic_outcomes:
        raise QueryError("A contrast has outcomes of its own: leave out the filters by outcome.")
    with _transaction(connection):
        question = _question(connection, query, mode, query_vector, _counting(connection, recent, filters))
        scope = _scope(filters, question.words)
        pool = max(_POOL, k)
        # Outcomes are looked up anyway, and deleted runs have none.
        found = _find(connection, question, scope, pool, pool_of_few=max(_POOL_OF_FEW, k), recent=recent)
        near = list(found.scores)
        # Where all that match are there, nothing more can be found.
        is_all = found.few is not None and found.few <= max(_POOL_OF_FEW, k)
        outcomes: dict[str, tuple[str | None, str]] = {}
        for first, last in ((0, _FIRST_LOOK), (_FIRST_LOOK, pool), (pool, None)):
            if some := near[first:last]:
                outcomes |= _outcomes(connection, some)
            if all(_enough(outcomes, one, k) for one in (Outcome.SUCCESS, Outcome.FAILURE)):
                break

        def side(outcome: Outcome) -> dict[str, dict[str, Any]]:
            chosen: dict[str, dict[str, Any]] = {}
            for verdict, rule in ((str(outcome), None), (None, str(outcome))):
                if len(chosen) >= k:
                    break
                said = (one for one in near if one in outcomes and _says(outcomes[one], verdict, rule))
                chosen |= found.rankings(islice(said, k))
                if not is_all and len(chosen) < k and (verdict is None or _is_judged(connection, verdict)):
                    narrowed = _scope(filters, question.words, judged=verdict, unjudged=rule)
                    more = _find_narrowed(connection, question, narrowed, k, many=found.few is None).items(k)
                    chosen |= {run_id: ranking for run_id, ranking in more.items() if run_id not in chosen}
            return dict(islice(chosen.items(), k))

        sides = [side(Outcome.SUCCESS), side(Outcome.FAILURE)]
        rows = _details(connection, [run_id for one in sides for run_id in one])
        return Contrast(*(_hits(rows, question.words, one) for one in sides))


def unknown_names(connection: psycopg.Connection, filters: SearchFilters) -> dict[str, list[str]]:
    """Return the names in filters that no run has, by filter: ids, tools, models, tags and the like; outcomes are not.

    Each is looked for alone, and one that nobody has costs a look at all runs: this is for a person, who may mistype.
    """
    unknown: dict[str, list[str]] = {}
    for name in _NAMED:
        given = getattr(filters, name)
        for value in (given,) if isinstance(given, str) else given or ():
            one: dict[str, Any] = {name: value if isinstance(given, str) else (value,)}
            alone = SearchFilters(**one)
            scope = _scope(alone, WordQuery((), (), ()))
            if connection.execute(f"{scope.runs} LIMIT 1".encode(), scope.parameters).fetchone() is None:
                unknown.setdefault(name, []).append(value)
    return unknown


def why_words_only(connection: psycopg.Connection) -> str | None:
    """Return why nothing can be found by meaning, and what to do, as a sentence; None where it can."""
    return _reason_for_words_only(find_space(connection))


def _reason_for_words_only(space: SearchedSpace) -> str | None:
    if space.pgvector.missing:
        return space.pgvector.missing
    if space.model is None:
        return (
            "There are no embeddings yet: materialize the asset trajectory_embeddings. It needs a model: pip install"
            " 'trajectory-pipeline[embeddings]', or name an endpoint in the settings"
        )
    return None


def _check(k: int, filters: SearchFilters, mode: str, query_vector: Sequence[float] | None) -> None:
    if not 1 <= k <= MOST_RESULTS:
        raise QueryError(f"{k:,} results were asked for: ask for 1 to {MOST_RESULTS:,}.")
    if mode not in ("hybrid", "words", "meaning"):
        raise QueryError(f"There is no mode {mode!r}: use hybrid, words or meaning.")
    if mode == "meaning" and query_vector is None:
        raise QueryError("Search by meaning needs the query's embedding by the current model.")
    if query_vector is not None and (
        not all(math.isfinite(number) for number in query_vector) or not any(query_vector)
    ):
        raise QueryError("The query's embedding is no direction: it is zero, or holds NaN or infinity.")
    for one in fields(filters):
        value = getattr(filters, one.name)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise QueryError(f"The filter {one.name} holds NUL or half of a surrogate pair: remove it.")
        if isinstance(value, datetime) and value.tzinfo is None:
            raise QueryError(f"The filter {one.name} has no time zone: add one, such as +00:00.")


def _transaction(connection: psycopg.Connection) -> AbstractContextManager[object]:
    """Return the transaction that the connection is in, or a new one: a savepoint would take two round trips."""
    is_idle = connection.info.transaction_status == TransactionStatus.IDLE
    return connection.transaction() if is_idle else nullcontext()


def _question(
    connection: psycopg.Connection,
    query: str,
    mode: SearchMode,
    query_vector: Sequence[float] | None,
    count: Callable[[Sequence[str]], dict[str, Frequency]],
) -> _Question:
    checked = check_query(query)
    _, _, tsquery, phrases, as_client, *found = _row(
        connection, _OPENING, {"query": checked, "phrases": quoted_phrases(checked)}
    )
    words = word_query(tsquery, phrases)
    space = None
    if mode != "words" and query_vector is not None:
        space = _space(as_space(connection, found), query_vector)
    if space is None and not words.terms:
        raise QueryError("The query has no word that can be found: add one, or search by meaning.")
    weights = {} if mode == "meaning" or not words.terms else count(words.terms)
    return _Question(mode, words, weights, space, as_client)


def _counting(
    connection: psycopg.Connection, recent: RecentCounts | None, filters: SearchFilters
) -> Callable[[Sequence[str]], dict[str, Frequency]]:
    if recent is None:
        return partial(document_frequencies, connection, tenants=filters.tenants)
    return partial(recent.frequencies, connection, filters.tenants)


def _find(
    connection: psycopg.Connection,
    question: _Question,
    scope: _Scope,
    k: int,
    *,
    pool_of_few: int = 0,
    recent: RecentCounts | None = None,
) -> _Found:
    """Return at least ``min(k, what matches)`` runs of a scope.

    With ``pool_of_few``, of few runs it is so many places of each list; of whole organizations so many by meaning, and
    some may be deleted.
    """
    if not scope.filtered:
        return _find_among_many(connection, question, scope, k)
    of_all = None
    if question.space is None or question.space.model.by_organization:
        of_all = _count_all(connection, scope, recent)
    if of_all is not None and question.space is not None:
        nearest = _nearest_within(connection, question.space, scope, max(_DEPTH, k))
        if nearest:
            return _find_within(connection, question, scope, k, of_all, nearest)
    depth = max(_DEPTH, k, pool_of_few)
    by_organization = question.space is not None and question.space.model.by_organization and scope.of_organizations
    most = EXACT_RUNS_OF_ORGANIZATION if by_organization else EXACT_RUNS
    counted_to = EXACT_RUNS_OF_ORGANIZATION if scope.of_organizations else EXACT_RUNS
    runs = recent.runs(scope.filters) if recent is not None and scope.of_organizations else None
    if runs is None:
        runs, found = _find_among_few(connection, question, scope, depth, counted_to)
        if found is not None:
            return found
        if recent is not None and scope.of_organizations:
            recent.remember_runs(scope.filters, runs)
    # Only now: words alone do not tell whether many or few pass.
    if of_all is not None and question.space is None:
        return _find_within(connection, question, scope, k, of_all, {})
    if not scope.whole or runs > counted_to:
        return _find_among_many(connection, question, scope, k)
    if runs > most:
        return _find_among_many(connection, question, scope, k, runs=runs)
    # Embeddings of all runs of an organization are read by an index of their own, without looking up each run.
    return _find_among_many(connection, question, scope, k, runs=runs, exact=depth, with_deleted=pool_of_few > 0)


def _find_among_few(
    connection: psycopg.Connection, question: _Question, scope: _Scope, depth: int, most: int
) -> tuple[int, _Found | None]:
    """Return how many runs a scope has, counted up to ``most``, and what is found by looking at each of them.

    None where there are too many.
    """
    # Words have an index always, embeddings only where there are many.
    indexed = question.space is None or question.space.model.indexed
    few = EXACT_RUNS_BESIDE_INDEX if indexed else EXACT_RUNS
    parameters = {**scope.parameters, "few": few, "most": most, "depth": depth}
    lists: sql.Composed = sql.Composed([])
    if question.weights:
        score, weights = _score(question.weights)
        parameters |= {**weights, "any": _any_of(question.weights)}
        lists += sql.SQL(_WORDS_AMONG_FEW).format(score=sql.SQL(score), words=sql.SQL(READ_WORDS))
    if question.space is not None:
        parameters["vector"] = question.space.vector
        lists += sql.SQL(_MEANING_AMONG_FEW).format(**question.space.parts)
    runs = sql.SQL(scope.runs)
    counted = sql.SQL(_COUNTED_APART if scope.whole else "allowed").format(runs=runs)
    statement = sql.SQL(_AMONG_FEW).format(runs=runs, counted=counted, lists=lists)
    (_, _, count, _), *rows = connection.execute(statement, parameters).fetchall()
    if count > few:
        return int(count), None
    by_words, by_meaning = ({run_id: score for one, run_id, score, _ in rows if one == number} for number in (1, 2))
    return int(count), _Found(_scores(question.mode, by_words, by_meaning), by_words, by_meaning, few=int(count))


def _count_all(connection: psycopg.Connection, scope: _Scope, recent: RecentCounts | None) -> int | None:
    """Return how many runs the organizations have of which a scope is a part.

    None where it is no such part, or where other ways are better: so few that each is looked at, or too many.
    """
    whole = scope.all_of_tenants
    if whole is None:
        return None
    runs = recent.runs(whole.filters) if recent is not None else None
    if runs is None:
        statement = f"SELECT count(*) FROM {_COUNTED_APART.format(runs=whole.runs)}"
        (runs,) = _row(connection, statement, {**whole.parameters, "most": EXACT_RUNS_OF_ORGANIZATION})
        if recent is not None:
            recent.remember_runs(whole.filters, runs)
    return runs if EXACT_RUNS_BESIDE_INDEX < runs <= EXACT_RUNS_OF_ORGANIZATION else None


def _find_within(
    connection: psycopg.Connection,
    question: _Question,
    scope: _Scope,
    k: int,
    runs: int,
    by_meaning: Mapping[str, float],
) -> _Found:
    """Return what is found in a part of whole organizations, which have so many runs, with what is nearest in it."""
    by_words = {}
    if question.weights:
        by_words = _rank_by_words(connection, question, scope, k, 0 if by_meaning else k, runs, within=True)
    return _Found(_scores(question.mode, by_words, by_meaning), by_words, by_meaning)


def _find_among_many(
    connection: psycopg.Connection,
    question: _Question,
    scope: _Scope,
    k: int,
    *,
    runs: int | None = None,
    exact: int | None = None,
    with_deleted: bool = False,
) -> _Found:
    """Return what is found by indexes.

    ``runs``: how many a whole scope has, where that is known. With ``exact``, so many places by meaning are from all
    embeddings of a scope.
    """
    by_meaning = {}
    if question.space is not None:
        if question.space.model.indexed and exact is None:
            by_meaning = _nearest_by_index(connection, question.space, scope, k, as_client=question.as_client)
        if len(by_meaning) < k:
            depth = max(_DEPTH, k, exact or 0)
            by_meaning = _nearest(connection, question.space, scope, depth, with_deleted=with_deleted)
    # Where meaning finds enough, words that most texts have need not be looked for: they say little, and take long.
    needed = 0 if len(by_meaning) >= k else k
    by_words = _rank_by_words(connection, question, scope, k, needed, runs) if question.weights else {}
    return _Found(_scores(question.mode, by_words, by_meaning), by_words, by_meaning)


def _scores(mode: SearchMode, by_words: Mapping[str, float], by_meaning: Mapping[str, float]) -> Mapping[str, float]:
    if mode == "hybrid":
        return dict(fuse_ranks([_ranks(by_words), _ranks(by_meaning)]))
    return by_words if mode == "words" else by_meaning


def _find_narrowed(connection: psycopg.Connection, question: _Question, scope: _Scope, k: int, *, many: bool) -> _Found:
    """Return runs with one outcome: of many, by the index, because words are found without an outcome."""
    if not many:
        return _find(connection, question, scope, k)
    if question.mode == "hybrid" and question.space is not None and question.space.model.indexed:
        near = _find_among_many(connection, replace(question, mode="meaning", weights={}), scope, k)
        if len(near.scores) >= k:
            return near
    return _find_among_many(connection, question, scope, k)


def _scope(
    filters: SearchFilters, words: WordQuery, *, judged: str | None = None, unjudged: str | None = None
) -> _Scope:
    """Return the runs that may be found; of those that pass the filters, all, or those with one outcome."""
    sources = ["trajectory.trajectories t"]
    conditions, parameters = filter_conditions(filters)
    of_client, _ = filter_conditions(SearchFilters(tenants=filters.tenants))
    of_tenants, _ = tenant_conditions(filters, "t")
    if judged:
        conditions.append("o.outcome = %(judged)s")
        parameters["judged"] = judged
    if unjudged:
        conditions.append("o.outcome IS NULL AND t.heuristic_outcome = %(unjudged)s")
        parameters["unjudged"] = unjudged
    if filters.outcomes or filters.failure_modes or filters.tags or judged or unjudged:
        sources.append(f"{OUTCOMES} o ON o.run_id = t.run_id")
    if words.required or words.excluded:
        sources.append("trajectory.search_texts x ON x.run_id = t.run_id")
    if words.required:
        conditions.append("x.words @@ %(required)s::tsquery")
        parameters["required"] = " & ".join(f"({phrase})" for phrase in words.required)
    if words.excluded:
        conditions.append("NOT x.words @@ %(excluded)s::tsquery")
        parameters["excluded"] = " | ".join(f"({phrase})" for phrase in words.excluded)

    whole = len(sources) == 1 and bool(of_tenants) and conditions[1:] == of_tenants

    def runs(conditions: Sequence[str]) -> str:
        return f"SELECT t.run_id FROM {' JOIN '.join(sources)} WHERE {' AND '.join(conditions)}"

    by_organization = bool(of_tenants) and not filters.agent_ids and not (filters.tenants and filters.tenants.agents)
    of_whole = SearchFilters(organization_ids=filters.organization_ids, tenants=filters.tenants)
    return _Scope(
        runs(conditions),
        parameters,
        bool(parameters),
        filters,
        whole=whole,
        of_organizations=whole and by_organization,
        only_tenants=len(sources) == 1 and conditions == of_client,
        of_client=runs([one for one in conditions if one not in of_client[1:]]),
        all_of_tenants=_scope(of_whole, WordQuery((), (), ())) if by_organization and not whole else None,
        narrowed=bool(judged or unjudged),
    )


def _rank_by_words(
    connection: psycopg.Connection,
    question: _Question,
    scope: _Scope,
    k: int,
    needed: int,
    runs: int | None,
    *,
    within: bool = False,
) -> dict[str, float]:
    """Return the score of runs with words of the query, best first: at least ``needed``, if there are so many.

    ``runs``: of a whole scope, where known: of them alone, texts are read by the indexes of words and of tenants. With
    ``within``, of the whole organizations of which this scope is a part.
    """
    weights = question.weights
    score, of_terms = _score(weights)
    matches = {term: one.share * (one.texts if runs is None else runs) for term, one in weights.items()}

    def scored(terms: Sequence[str], looked_at: int | None = LOOKED_AT * max(RANKED_MATCHES, k)) -> dict[str, float]:
        are_few = sum(matches[term] for term in terms) <= _CANDIDATES
        newest = _NEWEST_OF_FEW if are_few or within else _NEWEST
        if question.as_client and (within or scope.only_tenants):
            newest = _NEWEST_OF_CLIENT_WITHIN if within else _NEWEST_OF_CLIENT
        # What has all of the words is among the candidates, however many newer ones have some.
        candidates = [
            newest.format(query=f"%({name})s", of_texts=scope.also_of("s"), runs=scope.runs)
            for name in ("every", "any")[len(terms) < 2 :]
        ]
        parameters = {
            **scope.parameters,
            **of_terms,
            "depth": max(_DEPTH, k),
            "any": _any_of(terms),
            "bound": max(RANKED_MATCHES, k),
            "looked_at": looked_at,
            "are_few": are_few,
            "every": " & ".join(f"({term})" for term in terms),
        }
        statement = _WORDS.format(scope=scope.cte, candidates=" UNION ".join(candidates), score=score, words=READ_WORDS)
        return dict(connection.execute(statement.encode(), parameters))

    rarest = sorted(weights, key=lambda term: weights[term].share)
    places = _telling_terms(matches.values(), _CANDIDATES if runs is None else _CANDIDATES_OF_SCOPE)
    found = scored(rarest[:places])
    # One more at a time: the next one may be in a few texts, and the last one in half of them.
    while len(found) < needed and places < len(rarest):
        places += 1
        found = scored(rarest[:places])
    if within and question.as_client and len(found) < needed:
        # Of the newest ones, too few pass the filters.
        found = scored(rarest, None)
    return found


def _score(weights: Mapping[str, Frequency]) -> tuple[str, dict[str, Any]]:
    """Return the score of a text as an expression, and its parameters."""
    terms = [f"%(weight_{n})s::float8 * (s.words @@ %(term_{n})s::tsquery)::int" for n in range(len(weights))]
    parameters: dict[str, Any] = {}
    for number, (term, frequency) in enumerate(weights.items()):
        parameters |= {f"term_{number}": term, f"weight_{number}": frequency.weight}
    return _SCORE.format(weights=" + ".join(terms)), parameters


def _telling_terms(matches: Iterable[float], most: int) -> int:
    """Return how many of the rarest terms match at most so many texts together; at least one."""
    return max(1, sum(so_far <= most for so_far in accumulate(sorted(matches))))


def _any_of(terms: Iterable[str]) -> str:
    return " | ".join(f"({term})" for term in terms)


def _nearest(
    connection: psycopg.Connection, space: _Space, scope: _Scope, depth: int, *, with_deleted: bool = False
) -> dict[str, float]:
    """Return the cosine similarity of the runs nearest to the query, nearest first."""
    of_whole = _NEAREST_WITH_DELETED if with_deleted else _NEAREST_OF_WHOLE
    statement = sql.SQL(of_whole if scope.whole else _NEAREST).format(
        scope=sql.SQL(scope.cte),
        runs=sql.SQL(scope.runs),
        of_embeddings=sql.SQL(scope.also_of("e")),
        **space.parts,
    )
    looked_at = depth if with_deleted else 2 * depth
    parameters = {**scope.parameters, "vector": space.vector, "depth": depth, "looked_at": looked_at}
    found = connection.execute(statement, parameters).fetchall()
    if scope.whole and not with_deleted and len(found) < depth:
        # Many of the nearest ones are deleted.
        found = connection.execute(statement, {**parameters, "looked_at": None}).fetchall()
    return {run_id: 1 - distance for run_id, distance in found}


def _nearest_within(connection: psycopg.Connection, space: _Space, scope: _Scope, depth: int) -> dict[str, float]:
    """Return the same of a part of whole organizations; none where too few of the nearest are in it."""
    statement = sql.SQL(_NEAREST_OF_WHOLE).format(
        runs=sql.SQL(scope.runs), of_embeddings=sql.SQL(scope.also_of("e")), **space.parts
    )
    parameters = {**scope.parameters, "vector": space.vector, "depth": depth}
    for looked_at in (LOOKED_AT, 10 * LOOKED_AT):
        found = connection.execute(statement, {**parameters, "looked_at": looked_at * depth}).fetchall()
        if len(found) == depth:
            return {run_id: 1 - distance for run_id, distance in found}
        # Ten times as many would be too few again.
        if len(found) < depth / 10:
            break
    return {}


def _nearest_by_index(
    connection: psycopg.Connection, space: _Space, scope: _Scope, k: int, *, as_client: bool
) -> dict[str, float]:
    """Return about the same by the index, perhaps fewer."""
    depth = max(_DEPTH, k)
    connection.execute(_INDEX_SCAN, [str(min(max(depth, _LEAST_EF), _MOST_EF))])
    statement = sql.SQL(_NEAREST_BY_INDEX).format(
        # The client's role sees no other runs and embeddings anyway. Were it said twice, Postgres would expect too few
        # of them to ask the index.
        runs=sql.SQL(scope.of_client if as_client else scope.runs),
        of_embeddings=sql.SQL(scope.also_of("e", as_client=as_client)),
        **space.parts,
    )
    # Each place more is another look at the index.
    parameters = {**scope.parameters, "vector": space.vector, "places": k if scope.narrowed else depth}
    return {run_id: 1 - distance for run_id, distance in connection.execute(statement, parameters)}


def _space(space: SearchedSpace, query_vector: Sequence[float]) -> _Space:
    """Return the space in which the query vector is.

    Raises:
        QueryError: there are no embeddings, or of another length.
    """
    pgvector, model = space.pgvector, space.model
    if pgvector.missing or model is None:
        raise QueryError(f"{_reason_for_words_only(space)}.")
    if len(query_vector) != model.dimensions:
        raise QueryError(
            f"The query's embedding has {len(query_vector)} dimensions, and those of {model.name} have"
            f" {model.dimensions}: embed the query by that model."
        )
    return _Space(pgvector, model, orjson.dumps([float(number) for number in query_vector]).decode())


def _ranks(scores: Mapping[str, float]) -> dict[str, int]:
    return {run_id: place for place, run_id in enumerate(scores, start=1)}


def _details(connection: psycopg.Connection, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is stored of runs, by run."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return {row["run_id"]: row for row in cursor.execute(_DETAILS, [list(run_ids)])}


def _hits(
    rows: Mapping[str, Mapping[str, Any]], words: WordQuery, found: Mapping[str, Mapping[str, Any]]
) -> list[SearchHit]:
    """Return the runs that were found, in their order, with what is stored of each."""
    # A run can be deleted after it was found.
    left = [run_id for run_id in found if run_id in rows]
    return [_hit(rows[run_id], words, rank=rank, **found[run_id]) for rank, run_id in enumerate(left, start=1)]


def _hit(row: Mapping[str, Any], words: WordQuery, **ranking: Any) -> SearchHit:
    columns = {name: value for name, value in row.items() if name not in ("text", "requirements", "failure")}
    passage = snippet(row["text"] or "", words.terms)
    return SearchHit(**columns, **ranking, evidence=tuple(_evidence(row)), snippet=passage)


def _is_judged(connection: psycopg.Connection, outcome: str) -> bool:
    """Whether any verdict has this outcome: where nothing is judged, nothing need be looked for."""
    (found,) = _row(
        connection, "SELECT EXISTS (SELECT FROM trajectory.verdicts WHERE outcome = %(outcome)s)", {"outcome": outcome}
    )
    return bool(found)


def _outcomes(connection: psycopg.Connection, run_ids: Sequence[str]) -> dict[str, tuple[str | None, str]]:
    """Return the judged and the heuristic outcome of runs."""
    rows = connection.execute(_OUTCOMES, [list(run_ids)])
    return {run_id: (judged, by_rule) for run_id, judged, by_rule in rows}


def _enough(outcomes: Mapping[str, tuple[str | None, str]], outcome: Outcome, k: int) -> bool:
    """Whether so many runs have a verdict with this outcome."""
    return sum(_says(one, str(outcome), None) for one in outcomes.values()) >= k


def _says(outcomes: tuple[str | None, str], verdict: str | None, rule: str | None) -> bool:
    """Whether the judged outcome is this one; or there is none, and the heuristic one is."""
    return outcomes[0] == verdict and rule in (None, outcomes[1])


def _evidence(row: Mapping[str, Any]) -> Iterator[Evidence]:
    """Yield the valid quotes of a verdict."""
    cited = [(one["statement"], one["status"], one["evidence"]) for one in row["requirements"] or ()]
    if row["failure"] and not row["failure"].get("problem"):
        cited.append((None, None, row["failure"]["evidence"]))
    for claim, status, citations in cited:
        for citation in citations:
            if citation["valid"]:
                yield Evidence(claim, status, citation["message_id"], citation["quote"], citation["source"])


def _row(connection: psycopg.Connection, statement: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the one row of an aggregate."""
    row: tuple[Any, ...] | None = connection.execute(statement.encode(), parameters).fetchone()
    if row is None:  # pragma: no cover - an aggregate has a row
        raise AssertionError(statement)
    return row
