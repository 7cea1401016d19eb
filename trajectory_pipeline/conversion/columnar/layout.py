"""Turns by columns: which messages make a turn, and which turn follows which, for all runs of a batch at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trajectory_pipeline.conversion.columnar.columns import (
    Flags,
    Integers,
    RawColumns,
    codes_of,
    find_in_run,
    timestamp,
)
from trajectory_pipeline.conversion.turns import group_into_turns

_EXACT_MICROSECONDS = 2**53
"""Beyond, a time as a double is another one."""


@dataclass(frozen=True)
class Layout:
    """The turns of a batch, run by run, and their messages, turn by turn; rejected runs have none.

    Attributes:
        steps: of each turn, the index of its step; -1 where it has none.
        gone_steps: of turns whose step is named by messages and gone, by turn: its id.
        run_turns: where each run's turns begin; one more than there are runs.
        messages: indexes of the raw messages, in order.
        turn_messages: where each turn's messages begin in ``messages``; one more than there are turns.
    """

    steps: Integers
    gone_steps: dict[int, str]
    run_turns: Integers
    messages: Integers
    turn_messages: Integers

    @property
    def run_messages(self) -> Integers:
        """Where each run's messages begin in ``messages``; one more than there are runs."""
        return self.turn_messages[self.run_turns]


def lay_out(raw: RawColumns, rejected: Flags) -> Layout:
    """Return the turns of all runs that are not ``rejected``, by the rules of ``group_into_turns``.

    Runs with an id twice are rejected here. Steps with a time, and messages that name one of these, are ordered by
    columns; a run with any other row, by the rules' own code.
    """
    run_of_step, run_of_message = raw.run_of_step, raw.run_of_message
    sequence, created = raw.messages.integers("sequence_id"), raw.steps.integers("created_at")
    _reject_duplicates(raw.messages.arrays["id"], run_of_message, rejected)
    _reject_duplicates(raw.steps.arrays["id"], run_of_step, rejected)
    step_of_message = find_in_run(raw.steps.arrays["id"], run_of_step, raw.messages.arrays["step_id"], run_of_message)
    order = _by_sequence(raw, sequence, run_of_message)

    irregular = np.zeros(len(rejected), np.bool_)
    irregular[run_of_message[step_of_message < 0]] = True
    irregular[run_of_step[~raw.steps.valid("created_at") | (np.abs(created) > _EXACT_MICROSECONDS)]] = True

    first = np.zeros(len(run_of_step), np.int64)
    empty = np.ones(len(run_of_step), np.bool_)
    named = order[step_of_message[order] >= 0][::-1]
    # The last assignment holds: the earliest message.
    first[step_of_message[named]] = sequence[named]
    empty[step_of_message[named]] = False
    by_time = np.lexsort((_ranks(raw.steps.arrays["id"]), first, empty, created / 10**6, run_of_step))
    regular = by_time[~(irregular | rejected)[run_of_step[by_time]]]

    # A turn's number: the index of its step, or one beyond these.
    turn_of_message = step_of_message.copy()
    step_of_turn = list(range(len(run_of_step)))
    run_of_turn: list[int] = []
    gone: dict[int, str] = {}
    for run in np.flatnonzero(irregular & ~rejected).tolist():
        try:
            turns = list(_irregular_turns(raw, run))
        except Exception:  # such as a time that Python cannot hold
            rejected[run] = True
            continue
        for step, step_id, of_turn in turns:
            if step < 0 and step_id is not None:
                gone[len(step_of_turn)] = step_id
            turn_of_message[of_turn] = len(step_of_turn)
            step_of_turn.append(step)
            run_of_turn.append(run)

    numbers = np.concatenate([regular, np.arange(len(run_of_step), len(step_of_turn))])
    runs = np.concatenate([run_of_step[regular], np.array(run_of_turn, np.int64)])
    by_run = np.argsort(runs, kind="stable")
    numbers, runs = numbers[by_run], runs[by_run]
    place = np.full(len(step_of_turn), -1, np.int64)
    place[numbers] = np.arange(len(numbers))
    messages = order[~rejected[run_of_message[order]]]
    turns_of_messages = place[turn_of_message[messages]]
    by_turn = np.argsort(turns_of_messages, kind="stable")
    return Layout(
        steps=np.array(step_of_turn, np.int64)[numbers],
        gone_steps={int(place[number]): step_id for number, step_id in gone.items()},
        run_turns=np.searchsorted(runs, np.arange(len(rejected) + 1)),
        messages=messages[by_turn],
        turn_messages=np.searchsorted(turns_of_messages[by_turn], np.arange(len(numbers) + 1)),
    )


def _reject_duplicates(ids: "pa.Array[Any]", run_of: Integers, rejected: Flags) -> None:
    codes, distinct = codes_of(ids)
    if distinct < len(codes):
        keys = np.sort(run_of * (distinct + 1) + codes + 1)
        rejected[keys[1:][keys[1:] == keys[:-1]] // (distinct + 1)] = True


def _by_sequence(raw: RawColumns, sequence: Integers, run_of_message: Integers) -> Integers:
    """Return the messages of each run by ``sequence_id``, then id."""
    unordered = (run_of_message[1:] == run_of_message[:-1]) & (sequence[1:] <= sequence[:-1])
    if not unordered.any():
        return np.arange(len(sequence))
    return np.lexsort((_ranks(raw.messages.arrays["id"]), sequence, run_of_message))


def _ranks(ids: "pa.Array[Any]") -> Integers:
    ranks = np.empty(len(ids), np.int64)
    ranks[np.asarray(pc.array_sort_indices(ids))] = np.arange(len(ids))
    return ranks


def _irregular_turns(raw: RawColumns, run: int) -> Iterator[tuple[int, str | None, list[int]]]:
    """Yield the turns of one run in order: the index of the step, its id, and the indexes of its messages."""
    own, foreign, messages = (
        range(offsets[run], offsets[run + 1])
        for offsets in (raw.own_step_offsets, raw.foreign_step_offsets, raw.message_offsets)
    )
    step_ids, created = raw.steps["id"], raw.steps["created_at"]
    ids, sequence, named = (raw.messages[name] for name in ("id", "sequence_id", "step_id"))
    grouped = group_into_turns(
        [{"id": step_ids[at], "created_at": timestamp(created[at]), "at": at} for at in (*own, *foreign)],
        [{"message_id": ids[at], "sequence_id": sequence[at], "at": at} for at in messages],
        {ids[at]: named[at] for at in messages},
    )
    for turn in grouped:
        yield (
            -1 if turn.step is None else turn.step["at"],
            turn.step_id,
            [message["at"] for message in turn.messages],
        )
