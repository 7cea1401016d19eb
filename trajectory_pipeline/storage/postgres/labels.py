"""Labels: written so that writing twice changes nothing, and read with the verdicts that they are compared with.

Every function raises ``SinkError`` if the database refuses.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

from trajectory_pipeline.quality.sampling import weights
from trajectory_pipeline.schema.enums import Criterion, LabelSource, SamplingDesign
from trajectory_pipeline.schema.labels import (
    FEEDBACK_ANNOTATOR,
    JudgedPolicy,
    Label,
    LabelledVerdict,
    Repetition,
    StoredLabel,
    check_label,
)
from trajectory_pipeline.storage.postgres.connection import translating_database_errors
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.label_samples import drawn_runs
from trajectory_pipeline.storage.postgres.verdict_status import FIRST_RUN, VERDICT_OF_POLICY


@dataclass(frozen=True)
class LabelChanges:
    """What writing labels did.

    Attributes:
        added: labels of a new key.
        changed: labels that supersede another one.
        withdrawn: labels that no longer hold, without another in their place.
        unchanged: labels that were there already.
        outdated: labels that are older than the one that holds, or without a time; they were not written.
    """

    added: int = 0
    changed: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    outdated: int = 0


_LABEL_FIELDS = tuple(field.name for field in fields(Label))
_STORED_FIELDS = tuple(field.name for field in fields(StoredLabel))
_STORED = ", ".join(f"l.{name}" for name in _STORED_FIELDS)
_INSERT = (
    f"INSERT INTO trajectory.labels ({', '.join(_LABEL_FIELDS)}, revision, content_digest, created_at)"
    f" SELECT {', '.join(f'%({name})s' for name in _LABEL_FIELDS)}, %(revision)s,"
    " (SELECT content_digest FROM trajectory.trajectories WHERE run_id = %(run_id)s), clock_timestamp()"
).encode()
_SUPERSEDE = (
    "UPDATE trajectory.labels SET superseded_at = clock_timestamp() WHERE (run_id, criterion, item, annotator)"
    " = (%s, %s, %s, %s) AND superseded_at IS NULL"
)
_HOLD = f"SELECT {_STORED} FROM trajectory.labels l WHERE l.superseded_at IS NULL"
_NEWEST_REVISIONS = (
    "SELECT run_id, criterion, item, annotator, max(revision) AS revision FROM trajectory.labels"
    " WHERE run_id = ANY(%s) GROUP BY 1, 2, 3, 4"
)

_LABELLED_VERDICTS = f"""
WITH l AS ({_HOLD} AND l.criterion = ANY(%(criteria)s) AND l.source = ANY(%(sources)s))
SELECT {_STORED}, t.agent_id, t.agent_name, t.models, coalesce(t.conversation_id, chain.first_run_id) AS cluster,
    t.partition_key, t.end_time, coalesce(t.step_count, 0) AS step_count,
    coalesce(t.message_count, 0) AS message_count, ARRAY(
        SELECT turn.data ->> 'step_id' FROM jsonb_array_elements(t.data -> 'turns') WITH ORDINALITY turn (data, place)
        WHERE turn.data ->> 'step_id' IS NOT NULL ORDER BY turn.place
    ) AS step_ids, coalesce((
        SELECT left(string_agg(part.data ->> 'text', ' '), 1000) FROM jsonb_array_elements(t.data -> 'turns') turn,
            jsonb_array_elements(turn -> 'messages') message, jsonb_array_elements(message -> 'content') part (data)
        WHERE message ->> 'role' = 'user' AND part.data ->> 'type' = 'text'
    ), '') AS spoken, t.signals, t.heuristic_outcome, t.heuristic_confidence, %(policy)s::text AS policy_id,
    v.verdict_key, v.verdict_status, v.outcome, v.outcome_confidence, v.requirements, v.failure_owner, v.failure_mode,
    v.failed_step_id, v.interaction_depth, v.task_complexity, v.tool_use, v.reference_value, v.simulated, v.cost_usd
FROM l JOIN trajectory.trajectories t USING (run_id) CROSS JOIN {FIRST_RUN}
LEFT JOIN {VERDICT_OF_POLICY} ON true
ORDER BY l.run_id, l.criterion, l.item, l.annotator
"""

Key = tuple[str, str, str, str]


def write_labels(database: TrajectoryDatabase, labels: Iterable[Label]) -> LabelChanges:
    """Write labels, all or none of them; those that are there already are left alone.

    What an annotator says of a run by one criterion is written as a whole: a requirement that is not among these any
    more is withdrawn. A label that is older than the one that holds, or has no time where that has one, is not
    written.

    Raises:
        ValueError: a label is wrong, or two have the same key; nothing is written.
    """
    new: dict[Key, Label] = {}
    for label in labels:
        check_label(label)
        if new.setdefault(label.key, label) is not label:
            raise ValueError(f"two labels of run {label.run_id} by {label.annotator} for {label.criterion}")
    return _write(database, new, withdrawn=())


def labellable_runs(database: TrajectoryDatabase, run_ids: Sequence[str]) -> frozenset[str]:
    """Return which of these runs there is a trajectory of."""
    rows = database.rows("SELECT run_id FROM trajectory.trajectories WHERE run_id = ANY(%s)", [list(run_ids)])
    return frozenset(row["run_id"] for row in rows)


def withdraw_labels(database: TrajectoryDatabase, keys: Sequence[Key]) -> int:
    """Make labels no longer hold; they stay in the table. Returns how many held."""
    return _write(database, {}, withdrawn=keys).withdrawn


def read_labels(
    database: TrajectoryDatabase, criteria: Sequence[str] | None = None, sources: Sequence[LabelSource] | None = None
) -> list[StoredLabel]:
    """Return the labels that hold, by run, criterion, item and annotator.

    Without ``sources``, those that people gave to runs: all sources but Letta's feedback.
    """
    statement = f"{_HOLD} AND l.source = ANY(%s)"
    parameters: list[list[str]] = [list(sources or PEOPLE)]
    if criteria is not None:
        statement += " AND l.criterion = ANY(%s)"
        parameters.append(list(criteria))
    rows = database.rows(f"{statement} ORDER BY l.run_id, l.criterion, l.item, l.annotator", parameters)
    return [_stored(row) for row in rows]


def read_labelled_verdicts(
    database: TrajectoryDatabase,
    policy_id: str,
    criteria: Sequence[str],
    sources: Sequence[LabelSource] | None = None,
) -> list[LabelledVerdict]:
    """Return the labels that hold by these criteria, each with its run and the run's verdict under a policy.

    Labels of runs that were not captured, or were pruned, are left out. ``sources`` as for ``read_labels``. Of runs
    that were drawn, ``inclusion_probability`` is that over all draws until now: see ``quality.sampling.weights``.
    """
    rows = database.rows(
        _LABELLED_VERDICTS,
        {"policy": policy_id, "criteria": list(criteria), "sources": list(sources or PEOPLE)},
    )
    drawn = {row["run_id"] for row in rows if row["sampling_design"] not in (None, SamplingDesign.CENSUS)}
    standing_for = weights(drawn_runs(database, sorted(drawn))) if drawn else {}
    return [_labelled_verdict(row, standing_for.get(row["run_id"])) for row in rows]


PEOPLE = tuple(source for source in LabelSource if source is not LabelSource.LETTA_FEEDBACK)
"""Sources of what people said of runs when they were asked to."""


def read_repetitions(database: TrajectoryDatabase, policy_id: str) -> list[Repetition]:
    """Return the outcomes of runs that were judged more than once under a policy, with the content as it is now."""
    rows = database.rows(
        "SELECT v.run_id, coalesce(t.conversation_id, t.continues_run_id, t.run_id) AS cluster, v.repetition,"
        " v.verdict_status, v.outcome FROM trajectory.verdicts v JOIN trajectory.trajectories t"
        " ON t.run_id = v.run_id AND t.content_digest = v.content_digest"
        " WHERE v.policy_id = %s AND EXISTS (SELECT FROM trajectory.verdicts r WHERE r.run_id = v.run_id"
        " AND r.policy_id = v.policy_id AND r.repetition > 0) ORDER BY v.run_id, v.repetition",
        [policy_id],
    )
    return [Repetition(**row) for row in rows]


def policies_with_verdicts(database: TrajectoryDatabase) -> list[JudgedPolicy]:
    """Return the policies that labelled runs have verdicts under, the current one first."""
    rows = database.rows(
        "SELECT p.policy_id, p.model, p.is_current FROM trajectory.policies p WHERE EXISTS ("
        "SELECT FROM trajectory.verdicts v JOIN trajectory.labels l USING (run_id) WHERE v.policy_id = p.policy_id)"
        " ORDER BY p.is_current DESC, p.first_used_at DESC, p.policy_id"
    )
    return [JudgedPolicy(**row) for row in rows]


def record_feedback(database: TrajectoryDatabase) -> LabelChanges:
    """Take over what users of Letta said of steps: the labels of that source become those of the trajectories now."""
    rows = database.rows(
        "SELECT run_id, step_id, feedback FROM trajectory.turns"
        " WHERE feedback IN ('positive', 'negative') AND step_id IS NOT NULL"
    )
    labels = {
        label.key: label
        for label in (
            Label(
                run_id=row["run_id"],
                criterion=Criterion.STEP_FEEDBACK,
                item=row["step_id"],
                annotator=FEEDBACK_ANNOTATOR,
                source=LabelSource.LETTA_FEEDBACK,
                value=row["feedback"],
            )
            for row in rows
        )
    }
    # Of a run that was pruned nothing is known any more: what was said of it stays.
    gone = database.rows(
        f"{_HOLD} AND l.source = %s AND l.run_id IN (SELECT run_id FROM trajectory.trajectories)",
        [LabelSource.LETTA_FEEDBACK],
    )
    return _write(database, labels, withdrawn=[key for row in gone if (key := _stored(row).key) not in labels])


def erase_label_texts(connection: psycopg.Connection, run_ids: Sequence[str], *, changed_only: bool) -> None:
    """Erase what people wrote about these runs: notes and statements. Ids, values and times stay.

    ``changed_only``: of labels of another content than the run has now, which were written before it was erased.
    """
    connection.execute(
        "UPDATE trajectory.labels l SET note = NULL, statement = NULL WHERE l.run_id = ANY(%s)"
        " AND num_nonnulls(l.note, l.statement) > 0 AND NOT (%s AND l.content_digest IS NOT DISTINCT FROM"
        " (SELECT t.content_digest FROM trajectory.trajectories t WHERE t.run_id = l.run_id))",
        [list(run_ids), changed_only],
    )


def _write(database: TrajectoryDatabase, new: dict[Key, Label], withdrawn: Sequence[Key]) -> LabelChanges:
    with (
        database.connect() as connection,
        translating_database_errors(database.url, "Writing labels"),
        connection.cursor(row_factory=class_row(StoredLabel)) as cursor,
    ):
        # Two writers of the same key would both take the next revision.
        connection.execute("LOCK TABLE trajectory.labels IN SHARE ROW EXCLUSIVE MODE")
        run_ids = sorted({key[0] for key in (*new, *withdrawn)})
        cursor.execute(f"{_HOLD} AND l.run_id = ANY(%s)".encode(), [run_ids])
        held = {label.key: label for label in cursor}
        revisions: dict[Key, int] = {
            row[:4]: row[4] for row in connection.execute(_NEWEST_REVISIONS, [run_ids]).fetchall()
        }
        inserted, replaced, unchanged, outdated = [], [], 0, 0
        for key, label in new.items():
            before = held.get(key)
            if before is not None and _says_the_same(before, label):
                unchanged += 1
            elif before is not None and _is_older(label.labelled_at, before.labelled_at):
                outdated += 1
            else:
                values = {name: getattr(label, name) for name in _LABEL_FIELDS}
                inserted.append(
                    {**values, "evidence": list(label.evidence), "revision": revisions.get(key, 0) + 1},
                )
                if before is not None:
                    replaced.append(key)
        gone = [key for key in withdrawn if key in held and key not in new]
        groups = {(label.run_id, label.criterion, label.annotator): label.labelled_at for label in new.values()}
        for key, before in held.items():
            run_id, criterion, _, annotator = key
            group = (run_id, criterion, annotator)
            if key not in new and group in groups and not _is_older(groups[group], before.labelled_at):
                gone.append(key)
        with connection.cursor() as writer:
            writer.executemany(_SUPERSEDE, [*replaced, *dict.fromkeys(gone)])
            writer.executemany(_INSERT, inserted)
    return LabelChanges(
        added=len(inserted) - len(replaced),
        changed=len(replaced),
        withdrawn=len(dict.fromkeys(gone)),
        unchanged=unchanged,
        outdated=outdated,
    )


def _says_the_same(before: StoredLabel, label: Label) -> bool:
    """Whether a label adds nothing to the one that holds: all but the time and the place that it was read from."""
    ignored = ("labelled_at", "source", "evidence")
    return list(before.evidence) == list(label.evidence) and all(
        getattr(before, name) == getattr(label, name) for name in _LABEL_FIELDS if name not in ignored
    )


def _is_older(moment: datetime | None, than: datetime | None) -> bool:
    """Whether a label is not to replace another one; what has no time does not replace what has one."""
    return than is not None and (moment is None or moment < than)


def _stored(row: dict[str, Any]) -> StoredLabel:
    return StoredLabel(**{**row, "evidence": tuple(row["evidence"])})


def _labelled_verdict(row: dict[str, Any], weight: float | None) -> LabelledVerdict:
    label = _stored({name: row[name] for name in _STORED_FIELDS})
    if weight is not None and label.sampling_design not in (None, SamplingDesign.CENSUS):
        label = replace(label, inclusion_probability=1 / weight)
    rest = {field.name: row[field.name] for field in fields(LabelledVerdict) if field.name != "label"}
    rest |= {name: tuple(rest[name]) for name in ("models", "step_ids")}
    return LabelledVerdict(label=label, **rest)
