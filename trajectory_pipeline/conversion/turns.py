"""The order of a run: which messages make a turn, and which turn follows which."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Row = dict[str, Any]


@dataclass
class Turn:
    """One step with its messages by ``sequence_id``, or a stretch of messages without a step.

    ``step``, the raw row, is also None where the step is gone; ``step_id`` is not.
    """

    step_id: str | None
    step: Mapping[str, Any] | None
    messages: list[Row] = field(default_factory=list)

    @property
    def first_sequence_id(self) -> int | None:
        """The least ``sequence_id`` of its messages."""
        return self.messages[0]["sequence_id"] if self.messages else None

    @property
    def started_at(self) -> datetime | None:
        """When its step started."""
        return None if self.step is None else self.step["created_at"]


def group_into_turns(
    steps: Iterable[Mapping[str, Any]], messages: Iterable[Row], step_id_of: Mapping[str, str | None]
) -> list[Turn]:
    """Return the turns of a run, in order; every message is in exactly one.

    Turns are ordered by their step's ``created_at``, then their least ``sequence_id``, then step id. Messages without
    a step form a turn, one per consecutive stretch, placed by ``sequence_id``; so does a step that is named but gone.

    ``steps`` are raw rows of own steps, and of other runs' steps that the messages name; ``step_id_of`` has, by message
    id, the step that it names.
    """
    dated: dict[str, Turn] = {step["id"]: Turn(step["id"], step) for step in steps}
    undated: list[Turn] = []
    gone: dict[str, Turn] = {}
    stretch: Turn | None = None
    for message in sorted(messages, key=lambda row: (row["sequence_id"], row["message_id"])):
        step_id = step_id_of[message["message_id"]]
        if step_id is None:
            if stretch is None:
                stretch = Turn(None, None)
                undated.append(stretch)
            stretch.messages.append(message)
            continue
        stretch = None
        turn = dated.get(step_id) or gone.get(step_id)
        if turn is None:
            turn = gone[step_id] = Turn(step_id, None)
            undated.append(turn)
        turn.messages.append(message)
    for turn in [turn for turn in dated.values() if turn.started_at is None and turn.messages]:
        undated.append(dated.pop(turn.step_id or ""))
    ordered = sorted(dated.values(), key=_step_order)
    for turn in sorted(undated, key=lambda turn: (turn.first_sequence_id or 0, turn.messages[0]["message_id"])):
        _insert_by_sequence(turn, ordered)
    return ordered


def _step_order(turn: Turn) -> tuple[bool, float, bool, int, str]:
    started, first = turn.started_at, turn.first_sequence_id
    seconds = 0.0 if started is None else started.timestamp()
    return started is None, seconds, first is None, first or 0, turn.step_id or ""


def _insert_by_sequence(turn: Turn, ordered: list[Turn]) -> None:
    """Put a turn without a time before the first turn whose messages come later."""
    sequence_id = turn.first_sequence_id or 0
    for index, other in enumerate(ordered):
        if other.first_sequence_id is not None and other.first_sequence_id > sequence_id:
            ordered.insert(index, turn)
            return
    ordered.append(turn)
