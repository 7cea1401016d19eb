"""Which datasets were exported, which runs each holds, and the groups by which runs stay in one split.

Every function raises ``SinkError`` if the database refuses.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, LiteralString

import psycopg

from trajectory_pipeline.exports.formats import ExportFormat
from trajectory_pipeline.exports.splits import groups_of
from trajectory_pipeline.schema.exports import ExportFilters
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.urls import without_credentials

_REGISTER: LiteralString = """
INSERT INTO trajectory.exports (export_id, location, format, is_asset, filters, written_at)
VALUES (%s, %s, %s, %s, %s, clock_timestamp())
ON CONFLICT (export_id) DO UPDATE SET location = EXCLUDED.location, format = EXCLUDED.format,
    is_asset = EXCLUDED.is_asset, filters = EXCLUDED.filters, written_at = EXCLUDED.written_at"""
_COPY: LiteralString = (
    "COPY trajectory.export_runs"
    " (export_id, run_id, partition_key, content_digest, text_digest, split, outcome, signature) FROM STDIN"
)
_COPY_DUPLICATES: LiteralString = (
    "COPY trajectory.export_duplicates"
    " (export_id, partition_key, run_id, kept_run_id, kept_text_digest, kept_outcome) FROM STDIN"
)
_HELD_ELSEWHERE: LiteralString = """
SELECT run_id, text_digest, outcome FROM trajectory.export_runs
WHERE export_id = %(id)s AND partition_key <> %(key)s AND (text_digest = ANY(%(digests)s) OR run_id = ANY(%(runs)s))
ORDER BY run_id"""
# A run is left out for another one only as long as that one is there and says what it said.
_FORGET_WITHOUT_ORIGINAL: LiteralString = """
UPDATE trajectory.partitions SET inputs_digest = NULL
WHERE asset = %(asset)s AND partition_key <> %(key)s AND partition_key IN (
    SELECT d.partition_key FROM trajectory.export_duplicates d
    WHERE d.export_id = %(id)s AND d.kept_run_id = ANY(%(runs)s) AND NOT EXISTS (SELECT FROM trajectory.export_runs x
        WHERE x.export_id = d.export_id AND x.run_id = d.kept_run_id AND x.partition_key <> d.partition_key
        AND x.text_digest = d.kept_text_digest AND (d.kept_outcome IS NULL OR x.outcome = d.kept_outcome)))"""
_TEXT_KEYS_OF_ERASED: LiteralString = """
SELECT 'text ' || x.text_digest FROM trajectory.export_runs x JOIN trajectory.trajectories t USING (run_id)
WHERE x.export_id = %(id)s AND x.partition_key = %(key)s AND t.erased AND t.content_digest <> x.content_digest"""
_NEAR: LiteralString = """
SELECT run_id, text_digest, outcome, signature FROM trajectory.export_runs
WHERE export_id = %(id)s AND partition_key <> %(key)s AND signature IS NOT NULL AND run_id IN (
    SELECT run_id FROM trajectory.export_bands WHERE export_id = %(id)s AND band = ANY(%(bands)s))
ORDER BY run_id"""
_HOLDING: LiteralString = """
SELECT e.export_id, e.location, e.format, e.is_asset, e.written_at, x.run_id, x.split,
    t.content_digest IS NOT DISTINCT FROM x.content_digest AND t.deleted_at IS NULL AS is_current,
    t.run_id IS NULL AS is_pruned
FROM trajectory.export_runs x JOIN trajectory.exports e USING (export_id)
LEFT JOIN trajectory.trajectories t ON t.run_id = x.run_id
WHERE x.run_id = ANY(%s) ORDER BY e.location, x.run_id"""
# What is erased changes its digest; of what is deleted at the source the row says so. What was pruned has no row: also
# of a run that was deleted at the source before, nothing else is known.
_STALE: LiteralString = """
SELECT e.export_id, e.location, e.format, e.is_asset, e.written_at, count(x.run_id) AS runs,
    count(*) FILTER (WHERE is_erased) AS erased,
    count(*) FILTER (WHERE t.deleted_at IS NOT NULL AND NOT is_erased) AS deleted,
    count(x.run_id) FILTER (WHERE t.run_id IS NULL) AS pruned
FROM trajectory.exports e LEFT JOIN trajectory.export_runs x USING (export_id)
LEFT JOIN trajectory.trajectories t USING (run_id)
CROSS JOIN LATERAL (SELECT t.erased AND t.content_digest <> x.content_digest AS is_erased) one
GROUP BY e.export_id ORDER BY e.location"""
_INPUTS: LiteralString = """
WITH labels AS (
    SELECT t.partition_key, md5(string_agg(l.run_id || ' ' || l.value, ',' ORDER BY l.run_id, l.value)) AS digest
    FROM trajectory.labels l JOIN trajectory.trajectories t USING (run_id)
    WHERE %(labels)s AND l.criterion = 'outcome' AND l.superseded_at IS NULL AND l.source <> 'letta_feedback'
    GROUP BY 1
)
SELECT t.partition_key, t.result || ' ' || t.content_digest AS trajectories, coalesce(r.content_digest, '') AS verdicts,
    coalesce(labels.digest, '') AS labels,
    CASE WHEN e.partition_key IS NOT NULL THEN coalesce(e.inputs_digest, '') END AS recorded,
    t.result <> 'pruned' AND EXISTS (SELECT FROM trajectory.trajectories x
        WHERE x.partition_key = t.partition_key AND x.deleted_at IS NULL) AS has_runs
FROM trajectory.partitions t
LEFT JOIN trajectory.partitions r ON r.asset = %(refined)s AND r.partition_key = t.partition_key
LEFT JOIN trajectory.partitions e ON e.asset = %(asset)s AND e.partition_key = t.partition_key
LEFT JOIN labels ON labels.partition_key = t.partition_key
WHERE t.asset = %(trajectories)s AND (%(keys)s::text[] IS NULL OR t.partition_key = ANY(%(keys)s::text[]))
ORDER BY 1"""


@dataclass(frozen=True)
class Export:
    """A dataset: where it is, and what it is.

    Attributes:
        location: folder or URL; a password in it is not stored.
        filters: that selected its runs, as JSON holds them.
    """

    location: str
    format: str
    is_asset: bool
    filters: Mapping[str, Any]

    @property
    def export_id(self) -> str:
        """The same for the same place."""
        return f"export-{hashlib.sha256(without_credentials(self.location).encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class ExportedRun:
    """A run that a dataset holds, in the order of the table's columns."""

    run_id: str
    partition_key: str
    content_digest: str
    text_digest: str
    split: str
    outcome: str


_COPIED = attrgetter(*ExportedRun.__slots__)


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run that a dataset holds in another partition than the one that is made.

    Attributes:
        outcome: None where it was exported by an older version.
        signature: of what it says, in text; None where it was not asked for.
    """

    run_id: str
    text_digest: str
    outcome: str | None
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run that a partition lacks because the dataset holds another one like it in another partition.

    Attributes:
        kept_outcome: of the other one, where the two are alike only as long as it has this outcome; else None.
    """

    run_id: str
    kept_run_id: str
    kept_text_digest: str
    kept_outcome: str | None


@dataclass(frozen=True, slots=True)
class RegisteredExport:
    """A dataset with how many runs it holds, and how many of these were erased, deleted or pruned since."""

    export_id: str
    location: str
    format: str
    is_asset: bool
    written_at: Any
    runs: int
    erased: int
    deleted: int
    pruned: int

    @property
    def gone(self) -> dict[str, int]:
        """How many of its runs are gone since, by how; what is 0 is left out."""
        counts = {"erased": self.erased, "deleted": self.deleted, "pruned": self.pruned}
        return {how: number for how, number in counts.items() if number}


def asset_name(form: str) -> str:
    """Return the asset that keeps a dataset of a format up to date, as the ledger names it."""
    return f"exports/{form}"


def register_export(connection: psycopg.Connection, export: Export) -> None:
    """Note that a dataset is written to; it takes the place of a former one in the same place."""
    values = (export.export_id, without_credentials(export.location), export.format, export.is_asset)
    connection.execute(_REGISTER, [*values, json.dumps(export.filters)])


def lock_location(connection: psycopg.Connection, export: Export) -> None:
    """Wait until no other transaction holds the place of a dataset, and hold it until the end of this one.

    Whoever decides by what a dataset holds which runs to add must hold it from the look to the commit.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [export.export_id])


@dataclass(frozen=True, slots=True)
class Signature:
    """By what runs that are almost the same as a run are found, in text, and the bands that it is divided into."""

    text: str
    bands: Sequence[int]


def record_runs(
    connection: psycopg.Connection,
    export: Export,
    runs: Iterable[ExportedRun],
    partition_key: str | None = None,
    signatures: Mapping[str, Signature] = MappingProxyType({}),
) -> list[str]:
    """Note which runs a dataset holds now; with a partition, which of that partition; with signatures by run.

    Returns those that it held before.
    """
    condition: LiteralString = "" if partition_key is None else " AND partition_key = %(key)s"
    removed = connection.execute(
        f"DELETE FROM trajectory.export_runs WHERE export_id = %(id)s{condition} RETURNING run_id",
        {"id": export.export_id, "key": partition_key},
    ).fetchall()
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for run in runs:
            signature = signatures.get(run.run_id)
            copy.write_row((export.export_id, *_COPIED(run), signature and signature.text))
    if signatures:
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY trajectory.export_bands (export_id, run_id, band) FROM STDIN") as copy,
        ):
            for run_id, signature in signatures.items():
                for band in signature.bands:
                    copy.write_row((export.export_id, run_id, band))
    return [row[0] for row in removed]


def record_left_out(
    connection: psycopg.Connection, export: Export, partition_key: str, left_out: Iterable[LeftOut]
) -> None:
    """Note which runs of a partition are not in a dataset because of runs in its other partitions."""
    connection.execute(
        "DELETE FROM trajectory.export_duplicates WHERE export_id = %s AND partition_key = %s",
        [export.export_id, partition_key],
    )
    with connection.cursor() as cursor, cursor.copy(_COPY_DUPLICATES) as copy:
        for one in left_out:
            copy.write_row(
                (
                    *(export.export_id, partition_key, one.run_id),
                    *(one.kept_run_id, one.kept_text_digest, one.kept_outcome),
                )
            )


def forget_inputs_without_original(
    connection: psycopg.Connection, asset: str, export: Export, partition_key: str, were_held: Sequence[str]
) -> None:
    """Note that other partitions must be made again which lack a run because of one that the dataset holds no longer.

    To be called after ``record_runs``, with the runs that the partition held before.
    """
    parameters = {"asset": asset, "id": export.export_id, "key": partition_key, "runs": list(were_held)}
    connection.execute(_FORGET_WITHOUT_ORIGINAL, parameters)


def forget_erased_texts(connection: psycopg.Connection, export: Export, partition_key: str) -> None:
    """Remove the texts of a partition's erased runs from the groups; to be called before ``record_runs``."""
    parameters = {"id": export.export_id, "key": partition_key}
    keys = [row[0] for row in connection.execute(_TEXT_KEYS_OF_ERASED, parameters).fetchall()]
    if keys:
        # Not where there are none: it would make other exports wait until this transaction ends.
        connection.execute("DELETE FROM trajectory.export_groups WHERE group_key = ANY(%s)", [keys])


def near_elsewhere(
    database: TrajectoryDatabase, export: Export, partition_key: str, bands: Sequence[int]
) -> list[HeldRun]:
    """Return the runs with any of these bands that a dataset holds in other partitions."""
    rows = database.rows(_NEAR, {"id": export.export_id, "key": partition_key, "bands": list(bands)})
    return [HeldRun(**row) for row in rows]


def held_elsewhere(
    database: TrajectoryDatabase, export: Export, partition_key: str, texts: Mapping[str, str]
) -> list[HeldRun]:
    """Return what a dataset holds in other partitions of these runs and texts, which are given as digests by run."""
    parameters = {"id": export.export_id, "key": partition_key, "digests": [*texts.values()], "runs": [*texts]}
    return [HeldRun(**row) for row in database.rows(_HELD_ELSEWHERE, parameters)]


def splits_of(database: TrajectoryDatabase, export: Export) -> list[str]:
    """Return the splits that a dataset has."""
    rows = database.rows(
        "SELECT DISTINCT split FROM trajectory.export_runs WHERE export_id = %s ORDER BY 1", [export.export_id]
    )
    return [row["split"] for row in rows]


def contents_digest(database: TrajectoryDatabase, export: Export) -> str:
    """Return one digest of which runs a dataset holds, with which content, outcome and split."""
    (row,) = database.rows(
        "SELECT coalesce(md5(string_agg(concat_ws(' ', run_id, content_digest, outcome, split), ',' ORDER BY run_id)),"
        " '') AS digest FROM trajectory.export_runs WHERE export_id = %s",
        [export.export_id],
    )
    return str(row["digest"])


@dataclass(frozen=True, slots=True)
class PartitionInputs:
    """What a partition of an exported dataset is made from, and what it was made from.

    Attributes:
        trajectories: digest of the partition of ``trajectories``, with whether it was pruned.
        verdicts: digest of its partition of ``refined_outcomes``; empty where there is none.
        labels: digest of its labels; empty where they do not count.
        recorded: digest of the inputs that it was made from; empty where it must be made again, None where it was never
            made.
        has_runs: whether any of its runs is there at the source.
    """

    trajectories: str
    verdicts: str
    labels: str
    recorded: str | None
    has_runs: bool


def partition_inputs(
    database: TrajectoryDatabase, asset: str, filters: ExportFilters, keys: Sequence[str] | None = None
) -> dict[str, PartitionInputs]:
    """Return what the partitions of an asset depend on; of all partitions, or of these."""
    parameters = {
        "asset": asset,
        "trajectories": TRAJECTORIES.name,
        "refined": REFINED_OUTCOMES.name,
        "keys": None if keys is None else list(keys),
        "labels": bool(filters.labels),
    }
    return {row.pop("partition_key"): PartitionInputs(**row) for row in database.rows(_INPUTS, parameters)}


def current_policy(database: TrajectoryDatabase) -> str | None:
    """Return the id of the judge's current policy; None where nothing was judged yet."""
    rows = database.rows("SELECT policy_id FROM trajectory.policies WHERE is_current")
    return rows[0]["policy_id"] if rows else None


def forget_inputs(connection: psycopg.Connection, asset: str, partition_key: str) -> None:
    """Note that a partition of an exported dataset must be made again."""
    connection.execute(
        "UPDATE trajectory.partitions SET inputs_digest = NULL WHERE asset = %s AND partition_key = %s",
        [asset, partition_key],
    )


def exports_holding(database: TrajectoryDatabase, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return the datasets that hold any of these runs, a row a dataset and run.

    ``is_current``: it holds the run as it is now; ``is_pruned``: the run was pruned since.
    """
    return database.rows(_HOLDING, [list(run_ids)])


def registered_exports(database: TrajectoryDatabase) -> list[RegisteredExport]:
    """Return every dataset that was exported."""
    return [RegisteredExport(**row) for row in database.rows(_STALE)]


def stale_exports(database: TrajectoryDatabase) -> list[str]:
    """Return a sentence for each dataset that holds runs that were erased, deleted or pruned since, with what to do."""
    sentences = []
    for one in registered_exports(database):
        if not one.gone:
            continue
        held = " and ".join(f"{number} {how}" for how, number in one.gone.items())
        if not one.is_asset:
            advice = f"delete it, export it again, or `trajectory-pipeline exports forget {one.export_id}`"
        elif ExportFormat(one.format).form.pairs:
            advice = f"materialize exports/{one.format} (its daily job does)"
        else:
            advice = f"materialize the stale partitions of exports/{one.format} (its sensor requests them)"
        sentences.append(f"{one.location} holds runs that are gone since it was written, {held}: {advice}")
    return sentences


def forget_export(database: TrajectoryDatabase, export_id: str) -> bool:
    """Remove a dataset's entry; whether there was one. Its files are not touched.

    If an asset still writes it, its partitions are made again, so that they are noted again.
    """
    with database.connect() as connection, translating_database_errors(database.url, "Forgetting an export"):
        for table in ("export_runs", "export_duplicates"):
            connection.execute(f"DELETE FROM trajectory.{table} WHERE export_id = %s".encode(), [export_id])
        removed = connection.execute(
            "DELETE FROM trajectory.exports WHERE export_id = %s RETURNING format, is_asset", [export_id]
        ).fetchone()
        if removed is not None and removed[1]:
            connection.execute(
                "UPDATE trajectory.partitions SET inputs_digest = NULL WHERE asset = %s", [asset_name(removed[0])]
            )
        return removed is not None


def assign_groups(database: TrajectoryDatabase, keys: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the groups of each run, and keep them: what is once in a group stays there.

    A run has several where its chain, conversation and family were in different ones before it came. Keys that are new
    join the group of what they come with.

    Args:
        database: that holds the groups.
        keys: by run id, what it shares with others: its chain, conversation, task family, text.
    """
    if not keys:
        return {}
    wanted = sorted({key for own in keys.values() for key in own})
    with database.connect() as connection, translating_database_errors(database.url, "Keeping groups of runs"):
        # Two exports at once would put one key into two groups.
        connection.execute("LOCK TABLE trajectory.export_groups IN SHARE ROW EXCLUSIVE MODE")
        known: dict[str, str] = dict(
            connection.execute(
                "SELECT group_key, group_name FROM trajectory.export_groups WHERE group_key = ANY(%s)", [wanted]
            ).fetchall()
        )
        new = groups_of_new_keys(keys, known)
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY trajectory.export_groups (group_key, group_name) FROM STDIN") as copy,
        ):
            for row in sorted(new.items()):
                copy.write_row(row)
    groups = known | new
    return {run_id: tuple(sorted({groups[key] for key in own})) for run_id, own in keys.items()}


def text_key(text_digest: str) -> str:
    """Return what keeps runs in one split that say the same, though only one of them is there at a time."""
    return f"text {text_digest}"


def groups_of_new_keys(keys: Mapping[str, Sequence[str]], known: Mapping[str, str]) -> dict[str, str]:
    """Return the group of each key that has none: of what it comes with, directly or through other new keys."""
    unknown = {run_id: [key for key in own if key not in known] for run_id, own in keys.items()}
    unknown = {run_id: own for run_id, own in unknown.items() if own}
    components = groups_of(unknown)
    touched: dict[str, set[str]] = {}
    for run_id, name in components.items():
        touched.setdefault(name, set()).update(known[key] for key in keys[run_id] if key in known)
    return {
        key: min(touched[components[run_id]], default=components[run_id])
        for run_id, own in unknown.items()
        for key in own
    }
