"""The texts by which trajectories are found: which are stale, what they are made from, and storing them.

A text is stale where its trajectory, a run that it continues, its verdict or the rendering has changed since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from trajectory_pipeline.lossless_json import storable_text, write_json
from trajectory_pipeline.schema.search import TRAJECTORY_EMBEDDINGS
from trajectory_pipeline.storage.postgres.retrying_connection import RetryingConnection, Transaction
from trajectory_pipeline.storage.postgres.verdict_status import EARLIER_RUNS, LONGEST_CHAIN

# A verdict under an earlier policy speaks of the same content: it stands until there is one under the current policy.
_SOURCES: LiteralString = (
    """
WITH chosen AS (
    SELECT run_id, continues_run_id, content_digest, partition_key FROM trajectory.trajectories
    WHERE deleted_at IS NULL AND (partition_key = ANY(%(keys)s) OR run_id = ANY(%(run_ids)s))
), source AS (
    SELECT c.run_id, c.partition_key, e.run_ids || c.run_id AS task_run_ids,
        e.digests || c.content_digest AS task_digests, v.verdict_key, v.summary, v.lesson,
        CASE WHEN e.run_ids IS NULL THEN c.content_digest ELSE encode(sha256(convert_to(
            array_to_string(e.digests || c.content_digest, E'\\n'), 'UTF8')), 'hex') END AS content_digest
    FROM chosen c """
    + EARLIER_RUNS
    + """ LEFT JOIN LATERAL (
        SELECT v.verdict_key, v.summary, v.lesson
        FROM trajectory.verdicts v LEFT JOIN trajectory.policies p USING (policy_id)
        WHERE v.run_id = c.run_id AND v.content_digest = c.content_digest AND v.repetition = 0 AND NOT v.erased
            AND num_nonnulls(v.summary, v.lesson) > 0
        ORDER BY p.is_current DESC NULLS LAST, v.updated_at DESC, v.verdict_key LIMIT 1
    ) v ON true
)
"""
)
_STALE: LiteralString = (
    _SOURCES
    + """
SELECT s.* FROM source s LEFT JOIN trajectory.search_texts x USING (run_id)
WHERE (s.content_digest, s.verdict_key, s.partition_key, %(version)s)
    IS DISTINCT FROM (x.content_digest, x.verdict_key, x.partition_key, x.rendering_version)
ORDER BY s.run_id"""
)
# A run that continues one of these partitions' runs is of another partition, perhaps, which has not changed itself.
_CONTINUATIONS: LiteralString = """
WITH RECURSIVE continuing AS (
    SELECT t.run_id, t.partition_key FROM trajectory.trajectories e
    JOIN trajectory.trajectories t ON t.continues_run_id = e.run_id WHERE e.partition_key = ANY(%s)
    UNION SELECT t.run_id, t.partition_key FROM continuing c
    JOIN trajectory.trajectories t ON t.continues_run_id = c.run_id
) SELECT run_id FROM continuing WHERE partition_key <> ALL(%s)"""
_MARK_STALE: LiteralString = (
    _SOURCES
    + """
UPDATE trajectory.partitions p SET inputs_digest = NULL
WHERE p.asset = %(asset)s AND p.inputs_digest IS NOT NULL AND p.partition_key IN (
    SELECT s.partition_key FROM source s JOIN trajectory.search_texts x USING (run_id)
    WHERE s.content_digest <> x.content_digest)"""
)
# Of a document, what the text is made from, in the same shape: tools may have returned megabytes.
_DOCUMENTS: LiteralString = """
SELECT run_id, partition_key, CASE WHEN data IS NOT NULL THEN jsonb_build_object(
    'metadata', data -> 'metadata',
    'turns', jsonb_build_array(jsonb_build_object('messages', jsonb_path_query_array(data, '$.turns[*].messages[*] ?
        (@.role == "user" || exists (@.tool_calls[*]) || exists (@.tool_returns[*] ? (@.status == "error")))')))
    || (SELECT coalesce(jsonb_agg(t - 'messages' || '{"messages": []}'), '[]')
        FROM jsonb_path_query(data, '$.turns[*] ? (@.error != null)') AS t)) END AS data
FROM trajectory.trajectories WHERE run_id = ANY(%s)"""
_MADE_FROM_ERASED: LiteralString = (
    _SOURCES
    + """
SELECT x.run_id FROM trajectory.search_texts x LEFT JOIN source s USING (run_id)
WHERE x.run_id = ANY(%(run_ids)s) AND (s.content_digest IS DISTINCT FROM x.content_digest
    OR EXISTS (SELECT FROM trajectory.verdicts v
        WHERE v.run_id = x.run_id AND v.verdict_key = x.verdict_key AND v.erased))"""
)
_UNCHANGED_RUNS: LiteralString = (
    "SELECT run_id, content_digest, deleted_at IS NOT NULL AS deleted FROM trajectory.trajectories"
    " WHERE run_id = ANY(%s) ORDER BY run_id FOR SHARE"
)
_UNERASED_VERDICTS: LiteralString = (
    "SELECT v.run_id, v.verdict_key FROM trajectory.verdicts v JOIN unnest(%s::text[], %s::text[]) AS k (run_id,"
    " verdict_key) USING (run_id, verdict_key) WHERE NOT v.erased ORDER BY 1, 2 FOR SHARE OF v"
)
_SAVE: LiteralString = """
INSERT INTO trajectory.search_texts AS s (run_id, partition_key, text, rendering_version, text_digest, content_digest,
    verdict_key, rendered_at)
SELECT run_id, partition_key, text, rendering_version, text_digest, content_digest, verdict_key, clock_timestamp()
FROM jsonb_to_recordset(%s::jsonb) AS n (run_id text, partition_key text, text text, rendering_version text,
    text_digest text, content_digest text, verdict_key text)
ORDER BY run_id
ON CONFLICT (run_id) DO UPDATE SET partition_key = EXCLUDED.partition_key, text = EXCLUDED.text,
    rendering_version = EXCLUDED.rendering_version, text_digest = EXCLUDED.text_digest,
    content_digest = EXCLUDED.content_digest, verdict_key = EXCLUDED.verdict_key,
    rendered_at = CASE WHEN s.text_digest = EXCLUDED.text_digest THEN s.rendered_at ELSE EXCLUDED.rendered_at END"""
# A run that continues an erased one shows the task of that one.
_CONTINUING: LiteralString = """
WITH RECURSIVE continuing AS (
    SELECT unnest(%s::text[]) AS run_id
    UNION SELECT t.run_id FROM trajectory.trajectories t JOIN continuing c ON t.continues_run_id = c.run_id
) SELECT run_id FROM continuing"""


@dataclass(frozen=True)
class TextSource:
    """What a stale text is to be made from.

    Attributes:
        task_run_ids: the runs of its task, the earliest first, its own last; ``task_digests`` are their digests.
        content_digest: of all of them.
        verdict_key: of the verdict with ``summary`` and ``lesson``; None where there is none.
    """

    run_id: str
    partition_key: str
    task_run_ids: tuple[str, ...]
    task_digests: tuple[str, ...]
    content_digest: str
    verdict_key: str | None
    summary: str | None
    lesson: str | None


@dataclass(frozen=True)
class RenderedText:
    """A text, and what it was made from."""

    source: TextSource
    text: str
    text_digest: str
    rendering_version: str


def stale_texts(
    connection: RetryingConnection, partition_keys: Sequence[str], rendering_version: str
) -> list[TextSource]:
    """Return the trajectories of partitions, not deleted at the source, whose text is missing or stale."""
    rows = connection.rows(
        "Looking for stale search texts",
        _STALE,
        {"keys": list(partition_keys), "run_ids": [], "version": rendering_version, "longest": LONGEST_CHAIN},
    )
    tuples = ("task_run_ids", "task_digests")
    return [TextSource(**{**row, **{name: tuple(row[name]) for name in tuples}}) for row in rows]


def reduced_documents(
    connection: RetryingConnection, run_ids: Sequence[str]
) -> dict[str, tuple[dict[str, Any] | None, str]]:
    """Return what a text is made from of these runs' documents, each with its partition key.

    None where ``jsonb`` cannot hold a document. Runs without a trajectory are left out.
    """
    rows = connection.rows("Reading documents", _DOCUMENTS, [list(run_ids)])
    return {row["run_id"]: (row["data"], row["partition_key"]) for row in rows}


def save_texts(connection: RetryingConnection, texts: Sequence[RenderedText]) -> int:
    """Store texts, but for those whose trajectory or verdict has changed or was erased meanwhile; returns how many."""

    def work(transaction: Transaction) -> int:
        run_ids = sorted({run_id for text in texts for run_id in text.source.task_run_ids})
        found = {row["run_id"]: row for row in transaction.rows(_UNCHANGED_RUNS, [run_ids])}
        judged = [text.source for text in texts if text.source.verdict_key is not None]
        verdicts = transaction.rows(
            _UNERASED_VERDICTS, [[one.run_id for one in judged], [one.verdict_key for one in judged]]
        )
        unerased = {(row["run_id"], row["verdict_key"]) for row in verdicts}
        rows = [_row(text) for text in texts if _still_holds(text.source, found, unerased)]
        transaction.rows(_SAVE, [write_json(rows)])
        return len(rows)

    return connection.run(f"Storing {len(texts)} search texts", work)


def mark_stale_continuations(connection: RetryingConnection, partition_keys: Sequence[str]) -> None:
    """Mark other partitions whose texts show a task of these partitions' runs that has changed since, or is gone.

    Before these partitions have their entry, so that nothing is left out where this is interrupted.
    """
    keys = list(partition_keys)
    rows = connection.rows("Looking for runs that continue others", _CONTINUATIONS, [keys, keys])
    if rows:
        parameters = _stale_parameters([], [row["run_id"] for row in rows])
        connection.rows("Marking search texts as stale", _MARK_STALE, parameters)


def mark_if_stale(connection: psycopg.Connection, partition_key: str) -> None:
    """Mark a partition whose texts show a task that has changed since, in the transaction that writes its entry.

    A mark that another worker made just before would be lost otherwise.
    """
    connection.execute(_MARK_STALE, _stale_parameters([partition_key], []))


def _stale_parameters(partition_keys: Sequence[str], run_ids: Sequence[str]) -> dict[str, Any]:
    return {
        "keys": list(partition_keys),
        "run_ids": list(run_ids),
        "longest": LONGEST_CHAIN,
        "asset": TRAJECTORY_EMBEDDINGS.name,
    }


def count_texts(connection: RetryingConnection, partition_key: str) -> tuple[int, str]:
    """Return how many trajectories of a partition have a text that is not empty, and a digest of these texts."""
    (row,) = connection.rows(
        "Counting search texts",
        "SELECT count(*) AS n, encode(sha256(convert_to(coalesce(string_agg(s.run_id || ' ' || s.text_digest, E'\\n'"
        " ORDER BY s.run_id COLLATE \"C\"), ''), 'UTF8')), 'hex') AS digest"
        " FROM trajectory.search_texts s JOIN trajectory.trajectories t USING (run_id)"
        " WHERE s.partition_key = %s AND s.text <> '' AND t.deleted_at IS NULL",
        [partition_key],
    )
    return int(row["n"]), row["digest"]


def has_texts(connection: psycopg.Connection) -> bool:
    """Return whether there is any search text."""
    return connection.execute("SELECT FROM trajectory.search_texts LIMIT 1").rowcount > 0


def remove_texts(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Remove the texts and embeddings of runs, and of runs that continue them, which show their task.

    In the caller's transaction. What is removed and may be there is made again: its partition is stale then.
    """
    _remove(connection, [row[0] for row in connection.execute(_CONTINUING, [list(run_ids)])])


def remove_erased_texts(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    """Remove the texts and embeddings that were made from these runs, or from verdicts on them, before an erasure.

    In the caller's transaction, when runs and verdicts are erased. Texts that were made from what is left stay.
    """
    found = [row[0] for row in connection.execute(_CONTINUING, [list(run_ids)])]
    showing = "SELECT DISTINCT run_id FROM trajectory.verdicts WHERE erased AND shown_run_ids && %s"
    found += [row[0] for row in connection.execute(showing, [list(run_ids)])]
    parameters = {"keys": [], "run_ids": found, "longest": LONGEST_CHAIN}
    _remove(connection, [row[0] for row in connection.execute(_MADE_FROM_ERASED, parameters)])


def remove_texts_of_erased_verdicts(connection: psycopg.Connection, partition_key: str) -> None:
    """Remove the texts and embeddings of a partition that were made from verdicts before these were erased.

    In the caller's transaction.
    """
    showing = (
        "SELECT run_id FROM trajectory.search_texts s JOIN trajectory.verdicts v USING (run_id, verdict_key)"
        " WHERE v.partition_key = %s AND v.erased"
    )
    if found := [row[0] for row in connection.execute(showing, [partition_key])]:
        _remove(connection, found)


def _remove(connection: psycopg.Connection, run_ids: Sequence[str]) -> None:
    connection.execute(
        "UPDATE trajectory.partitions p SET inputs_digest = NULL WHERE p.asset = %s AND p.partition_key IN"
        " (SELECT s.partition_key FROM trajectory.search_texts s WHERE s.run_id = ANY(%s))",
        [TRAJECTORY_EMBEDDINGS.name, list(run_ids)],
    )
    connection.execute("DELETE FROM trajectory.search_texts WHERE run_id = ANY(%s)", [list(run_ids)])
    if connection.execute("SELECT to_regclass('trajectory.trajectory_embeddings')").fetchone() != (None,):
        connection.execute("DELETE FROM trajectory.trajectory_embeddings WHERE run_id = ANY(%s)", [list(run_ids)])


def _still_holds(
    source: TextSource, runs: Mapping[str, Mapping[str, Any]], verdicts: set[tuple[str, str | None]]
) -> bool:
    own = runs.get(source.run_id)
    digests = tuple(runs[run_id]["content_digest"] for run_id in source.task_run_ids if run_id in runs)
    judged = source.verdict_key is None or (source.run_id, source.verdict_key) in verdicts
    return own is not None and not own["deleted"] and digests == source.task_digests and judged


def _row(text: RenderedText) -> dict[str, Any]:
    source = text.source
    return {
        "run_id": source.run_id,
        "partition_key": source.partition_key,
        "text": storable_text(text.text),
        "rendering_version": text.rendering_version,
        "text_digest": text.text_digest,
        "content_digest": source.content_digest,
        "verdict_key": source.verdict_key,
    }
