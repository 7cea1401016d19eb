"""Keeps the registry of failure modes: puts the texts of new failures into groups, and finds what is new or growing."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

from trajectory_pipeline.judge.response_schema import FailureMode
from trajectory_pipeline.quality.failure_modes import (
    FailureText,
    Growth,
    Leader,
    assign_modes,
    error_line,
    find_growth,
)
from trajectory_pipeline.schema.enums import FailureModeKind
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.failure_modes import (
    FoundText,
    ModeRun,
    add_failures,
    failures_before_and_after,
    groups_of_texts,
    read_leaders,
    remove_old_failures,
    texts_of_untitled,
    texts_without_group,
    titles_of,
)

RECENT = timedelta(days=7)
EARLIER = timedelta(days=28)
LONGEST_TEXT = 2000
"""Characters of an error or lesson that are compared and shown; what differs after that is one failure."""

Redact = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class GrowingMode:
    """A failure mode that is new or growing, with its title where that is still there."""

    growth: Growth
    title: str | None


def update_failure_modes(database: TrajectoryDatabase, redact: Redact) -> int:
    """Put every text about a failure into its group; returns how many groups are new.

    Texts are redacted before they are compared or stored. Two that do so at once may both found a group for the same
    text: it has the same id.

    Raises:
        SinkError: the database cannot be read or refuses.
    """
    remove_old_failures(database)
    _restore_titles(database, redact)
    listed = [Leader(mode, FailureModeKind.LISTED, mode) for mode in get_args(FailureMode) if mode != "none"]
    found = texts_without_group(database)
    texts = [_redacted(one, redact) for one in found]
    leaders = read_leaders(database)
    known = groups_of_texts(database, {text.digest for text in texts})
    known |= {text.digest: text.text for text in texts if text.kind is FailureModeKind.LISTED}
    groups, new = assign_modes(texts, leaders, known)
    first_runs: dict[str, str] = {}
    for text in texts:
        first_runs.setdefault(groups[text.digest], text.run_id)
    runs = [
        ModeRun(one.run_id, groups[text.digest], text.digest, one.kind, one.source)
        for one, text in zip(found, texts, strict=True)
    ]
    known_ids = {leader.mode_id for leader in leaders}
    seeds = [(leader, None) for leader in listed if leader.mode_id not in known_ids]
    add_failures(database, [*seeds, *((leader, first_runs[leader.mode_id]) for leader in new)], runs)
    return len(new)


def find_growing_modes(database: TrajectoryDatabase, end: datetime) -> tuple[list[GrowingMode], tuple[int, int]]:
    """Return the failure modes that are new or growing in the week before a moment, and the runs of both periods."""
    counts, runs = failures_before_and_after(database, end - RECENT - EARLIER, end - RECENT, end)
    grown = [growth for growth in find_growth(counts, runs) if growth.found]
    titles = titles_of(database, [growth.mode_id for growth in grown])
    return [GrowingMode(growth, titles.get(growth.mode_id)) for growth in grown], runs


def _restore_titles(database: TrajectoryDatabase, redact: Redact) -> None:
    """Give groups whose first text was erased the text of their oldest run that is left."""
    texts = [_redacted(one, redact) for one in texts_of_untitled(database)]
    groups = groups_of_texts(database, {text.digest for text in texts})
    titled = {leader.mode_id for leader in read_leaders(database)}
    restored: dict[str, tuple[Leader, str | None]] = {}
    for text in texts:
        mode_id = groups.get(text.digest)
        if mode_id is not None and mode_id not in titled:
            restored.setdefault(mode_id, (Leader(mode_id, text.kind, text.text), text.run_id))
    add_failures(database, list(restored.values()), [])


def _redacted(found: FoundText, redact: Redact) -> FailureText:
    if found.kind is FailureModeKind.LISTED:
        return FailureText(found.run_id, found.kind, found.text)
    text = redact(found.text)
    if found.kind is FailureModeKind.TOOL_ERROR:
        text = f"{found.tool or 'tool'}: {error_line(text)}"
    return FailureText(found.run_id, found.kind, text[:LONGEST_TEXT])
