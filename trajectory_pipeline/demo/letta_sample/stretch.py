"""How the sample's data file was made: real rows, their runs moved back in time by whole hours.

    python -m trajectory_pipeline.demo.letta_sample.stretch ORIGINAL.sql.gz OUT.sql.gz

The original is a pg_dump of a real Letta server whose runs all ended within two hours, which is one or two partitions.
Each run is moved back by whole hours, with all rows that are its own, onto the hours of a working week: durations,
order and distances within a run stay as they were measured. Nothing but times changes, and no time inside JSON.

Belongs here: which rows move together, which hour a run moves to. Does not belong here: loading (see `load`), the
dump's format (see `dump`). Nothing in the package runs this; it is kept so that the data file can be made again.

What decides a run's hour is a hash of ids, never chance, so the same original gives the same file:

- Runs of one agent keep their order, because an agent's context is made of its earlier runs. Agents that talk to each
  other count as one, for the same reason.
- Runs of one agent that overlap in time move together, so that none ends before another that it ended after.
- The answer to an approval request comes in the same hour, an hour later, the next morning or days later.
"""

import argparse
import bisect
import gzip
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path

from trajectory_pipeline.demo.letta_sample import dump

Record = dict[str, str | None]

_HOUR_NS = 3_600_000_000_000

# How likely a session is to fall on an hour, UTC; hours that are not named stay empty.
_WORKING_DAY = {2: 2, 7: 2, 8: 5, 9: 9, 10: 9, 11: 6, 12: 3, 13: 6, 14: 9, 15: 8, 16: 5, 17: 3, 19: 1, 22: 1}
_SATURDAY = {10: 2, 11: 1, 15: 1, 20: 1}
_DAYS = 5
# One hour far busier than the rest: (weekday, hour), Thursday afternoon.
_RUSH_HOUR, _RUSH = (3, 14), 45

# The chance that an agent's next run begins a new session, and so (mostly) comes in another hour.
_NEW_SESSION = 0.4

# When the answers to approval requests come, one after the other and then from the start.
_ANSWERS = ("same hour", "next hour", "same hour", "next morning", "same hour", "next hour", "same hour", "days later")

_REST_IN_UTC = re.compile(r":\d\d:\d\d(\.\d+)?(\+00)?")
_AGENT_ID = re.compile(r"agent-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class StretchError(ValueError):
    """The dump holds what this script has no rule for; the message says what."""


@dataclass(frozen=True)
class _Run:
    id: str
    agent_id: str
    begin: datetime
    end: datetime


class _Rows:
    """The rows that decide what moves together, looked up by what links them."""

    def __init__(self, tables: dict[str, list[Record]]) -> None:
        self.agents = {_text(row, "id"): row for row in tables["public.agents"]}
        self.conversations = tables["public.conversations"]
        self.messages = tables["public.messages"]
        self.run_of_step = {_text(row, "id"): row["run_id"] for row in tables["public.steps"]}
        self.runs = self._runs(tables)
        self.run_by_id = {run.id: run for run in self.runs}
        self.runs_of_agent: dict[str, list[_Run]] = defaultdict(list)
        for run in self.runs:
            self.runs_of_agent[run.agent_id].append(run)
        self.runs_of_conversation = self._runs_of_conversation(tables["public.runs"])
        self.asking_run = self._asking_runs()

    def _runs(self, tables: dict[str, list[Record]]) -> list[_Run]:
        """Every run with its first and last sign of life, by when it was created."""
        times: dict[str, list[datetime]] = defaultdict(list)
        for table in ("public.runs", "public.run_metrics", "public.steps", "public.step_metrics", "public.messages"):
            for row in tables[table]:
                if run_id := _owner(table, row, self.run_of_step):
                    times[run_id] += [_instant(value) for name in _TIMES[table] if (value := row[name])]
        runs = [
            _Run(run_id, _text(row, "agent_id"), _instant(_text(row, "created_at")), max(times[run_id]))
            for row in tables["public.runs"]
            for run_id in [_text(row, "id")]
        ]
        return sorted(runs, key=lambda run: (run.begin, run.id))

    def _runs_of_conversation(self, run_rows: list[Record]) -> dict[str, list[_Run]]:
        # A blocking conversation run's own row lacks conversation_id; its messages have it.
        pairs = {(row["conversation_id"], row["id"]) for row in run_rows}
        pairs |= {(row["conversation_id"], row["run_id"]) for row in self.messages}
        found: dict[str, list[_Run]] = defaultdict(list)
        for run in self.runs:
            for conversation in self.conversations:
                if (conversation["id"], run.id) in pairs:
                    found[_text(conversation, "id")].append(run)
        return found

    def _asking_runs(self) -> dict[str, str]:
        """Answering run → asking run: the answer's first messages carry a step of the run that asked."""
        asking: dict[str, str] = {}
        for row in self.messages:
            run_id, asked_in = row["run_id"], self.run_of_step.get(row["step_id"] or "")
            if run_id and asked_in and asked_in != run_id:
                asking[run_id] = asked_in
        return asking

    def agent_groups(self) -> list[list[str]]:
        """Agents by who talks to whom: one names the other in a message, or is its sleeptime companion."""
        group_of = {agent_id: {agent_id} for agent_id in self.agents}

        def join(one: str, other: str) -> None:
            if group_of[one] is not group_of[other]:
                merged = group_of[one] | group_of[other]
                group_of.update(dict.fromkeys(merged, merged))

        for row in self.messages:
            for column in ("content", "tool_calls", "tool_returns"):
                for named in _AGENT_ID.findall(row[column] or ""):
                    if named in self.agents:
                        join(_text(row, "agent_id"), named)
        by_name = {(row["organization_id"], row["name"]): agent_id for agent_id, row in self.agents.items()}
        for (organization_id, name), agent_id in by_name.items():
            if companion := by_name.get((organization_id, f"{name}-sleeptime")):
                join(agent_id, companion)
        return sorted({id(group): sorted(group) for group in group_of.values()}.values())


def stretch(parts: Sequence[dump.Part]) -> tuple[dump.Part, ...]:
    """Move the times of a dump.

    Raises:
        StretchError: a table whose times this script does not know, or rows that do not fit together.
    """
    blocks = {block.table: block for block in dump.copy_blocks(parts)}
    if unknown := sorted(blocks.keys() - _TIMES.keys()):
        raise StretchError(f"no rule for the times of {', '.join(unknown)}: add its columns to _TIMES")
    if missing := sorted(_TIMES.keys() - blocks.keys()):
        raise StretchError(f"the dump lacks {', '.join(missing)}")
    rows = _Rows({table: list(block.records()) for table, block in blocks.items()})
    hours_back = _plan(rows)
    return tuple(_moved(part, rows, hours_back) if isinstance(part, dump.CopyBlock) else part for part in parts)


def _plan(rows: _Rows) -> dict[str, int]:
    """Run id → hours that it moves back; for an agent without runs, the agent's id."""
    # The hour in which most runs ended is moved onto each slot, so that slots are what the partitions will be.
    base = Counter(_hour(run.end) for run in rows.runs).most_common(1)[0][0]
    slots = _Slots(base)
    answer_comes = dict(zip(rows.asking_run, itertools.cycle(_ANSWERS), strict=False))
    hours_back: dict[str, int] = {}
    for group in rows.agent_groups():
        runs = [run for run in rows.runs if run.agent_id in group]
        steps = _steps_between(runs, rows.asking_run, answer_comes)
        sessions = 1 + sum(step == "new session" for step in steps)
        drawn = iter(sorted(slots.draw(f"{group[0]} {number}") for number in range(sessions)))
        slot = next(drawn)
        for run, step in zip(runs, ["same hour", *steps], strict=False):
            slot = max(slot, next(drawn)) if step == "new session" else slots.later(slot, step)
            hours_back[run.id] = (base - slot) // timedelta(hours=1)
        for agent_id in group:
            if not rows.runs_of_agent[agent_id]:
                hours_back[agent_id] = (base - slot) // timedelta(hours=1)
    return hours_back


def _steps_between(runs: Sequence[_Run], asking_run: dict[str, str], answer_comes: dict[str, str]) -> list[str]:
    """How the hour goes on from each run to the next one of the same agents."""
    position = {run.id: number for number, run in enumerate(runs)}
    # Between question and answer no session begins: how far apart they are is what `answer_comes` says.
    waiting = {
        number
        for answer, asking in asking_run.items()
        if answer in position and asking in position
        for number in range(position[asking] + 1, position[answer] + 1)
    }
    steps = []
    busy_until_by_run = itertools.accumulate((run.end for run in runs), max)
    for number, (run, busy_until) in enumerate(zip(runs[1:], busy_until_by_run, strict=False), start=1):
        if run.begin <= busy_until:
            steps.append("same hour")
        elif run.id in answer_comes:
            steps.append(answer_comes[run.id])
        elif number in waiting or _fraction(f"session {run.id}") >= _NEW_SESSION:
            steps.append("same hour")
        else:
            steps.append("new session")
    return steps


class _Slots:
    """The hours that runs move to: the days before the original's day."""

    def __init__(self, base: datetime) -> None:
        first_day = base.replace(hour=0) - timedelta(days=_DAYS)
        self.weights: dict[datetime, int] = {}
        for day in (first_day + timedelta(days=number) for number in range(_DAYS)):
            profile = _WORKING_DAY if day.weekday() < 5 else _SATURDAY
            for hour, weight in profile.items():
                rush = (day.weekday(), hour) == _RUSH_HOUR
                self.weights[day + timedelta(hours=hour)] = _RUSH if rush else weight
        self._hours = list(self.weights)
        self._cumulative = list(itertools.accumulate(self.weights.values()))
        self.last = self._hours[-1]

    def draw(self, key: str) -> datetime:
        """Pick an hour by weight; the same key gives the same hour."""
        return self._hours[bisect.bisect_right(self._cumulative, _fraction(key) * self._cumulative[-1])]

    def later(self, slot: datetime, step: str) -> datetime:
        """Say in which hour comes what follows; at the end of the window, the hour stays."""
        days = {"next morning": 1, "days later": 2}
        if step == "next hour":
            follows = slot + timedelta(hours=1)
        elif step in days:
            follows = slot.replace(hour=9) + timedelta(days=days[step])
        else:
            follows = slot
        return follows if follows <= self.last else slot


def _moved(block: dump.CopyBlock, rows: _Rows, hours_back: dict[str, int]) -> dump.CopyBlock:
    moved = []
    for fields, row in zip(block.rows, block.records(), strict=True):
        changed = list(fields)
        for name, hours_of in _TIMES[block.table].items():
            index = block.columns.index(name)
            if fields[index] != dump.NULL:
                changed[index] = _earlier(fields[index], hours_of(row, rows, hours_back))
        moved.append(tuple(changed))
    return replace(block, rows=tuple(moved))


def _earlier(value: str, hours: int) -> str:
    """Set back a time as Postgres writes it, or Unix nanoseconds, by whole hours; its other digits stay."""
    if value.isdigit():
        return str(int(value) - hours * _HOUR_NS)
    hour, rest = value[:13], value[13:]
    if not _REST_IN_UTC.fullmatch(rest):
        raise StretchError(f"{value}: a dump in UTC is needed (PGTZ=UTC pg_dump …)")
    return f"{datetime.fromisoformat(hour) - timedelta(hours=hours):%Y-%m-%d %H}{rest}"


# How far a row moves back: (row, all rows, hours by run) → hours.
_Hours = Callable[[Record, _Rows, dict[str, int]], int]


def _with_its_run(table: str) -> _Hours:
    def hours(row: Record, rows: _Rows, hours_back: dict[str, int]) -> int:
        run_id = _owner(table, row, rows.run_of_step)
        if run_id:
            return hours_back[run_id]
        # Boot messages, and summaries made by hand: as the agent's run before them, or its first.
        return hours_back[_run_before(row, rows, _text(row, "agent_id"))]

    return hours


def _with_the_agents_run(number: int) -> _Hours:
    def hours(row: Record, rows: _Rows, hours_back: dict[str, int]) -> int:
        runs = rows.runs_of_agent[_text(row, "id")]
        return hours_back[runs[number].id if runs else _text(row, "id")]

    return hours


def _with_the_conversations_run(number: int) -> _Hours:
    def hours(row: Record, rows: _Rows, hours_back: dict[str, int]) -> int:
        runs = rows.runs_of_conversation[_text(row, "id")]
        return hours_back[runs[number].id if runs else _run_before(row, rows, _text(row, "agent_id"))]

    return hours


def _with_its_earliest_agent(row: Record, rows: _Rows, hours_back: dict[str, int]) -> int:
    first = _with_the_agents_run(0)
    return max(
        (first(agent, rows, hours_back) for agent in rows.agents.values() if agent["organization_id"] == row["id"]),
        default=max(hours_back.values()),
    )


def _run_before(row: Record, rows: _Rows, agent_id: str) -> str:
    runs = rows.runs_of_agent[agent_id]
    if not runs:
        return agent_id
    created_at = _instant(_text(row, "created_at"))
    return next((run.id for run in reversed(runs) if run.begin <= created_at), runs[0].id)


def _owner(table: str, row: Record, run_of_step: dict[str, str | None]) -> str | None:
    """Find the run whose row this is; metrics are joined by id: step_metrics.run_id is NULL in some rows."""
    if table in ("public.runs", "public.run_metrics"):
        return row["id"]
    if table == "public.step_metrics":
        return run_of_step[_text(row, "id")]
    return row["run_id"]


def _all(names: Iterable[str], hours: _Hours) -> dict[str, _Hours]:
    return dict.fromkeys(names, hours)


# Every column that holds a time, and what it moves with.
_TIMES: dict[str, dict[str, _Hours]] = {
    "public.organizations": _all(("created_at", "updated_at"), _with_its_earliest_agent),
    "public.agents": {
        "created_at": _with_the_agents_run(0),
        **_all(("updated_at", "last_run_completion"), _with_the_agents_run(-1)),
    },
    "public.agents_tags": {},
    "public.conversations": {
        "created_at": _with_the_conversations_run(0),
        **_all(("updated_at", "last_message_at"), _with_the_conversations_run(-1)),
    },
    "public.runs": _all(("created_at", "updated_at", "completed_at", "callback_sent_at"), _with_its_run("public.runs")),
    "public.run_metrics": _all(("created_at", "updated_at", "run_start_ns"), _with_its_run("public.run_metrics")),
    "public.steps": _all(("created_at", "updated_at"), _with_its_run("public.steps")),
    "public.step_metrics": _all(
        ("created_at", "updated_at", "step_start_ns", "llm_request_start_ns"), _with_its_run("public.step_metrics")
    ),
    "public.messages": _all(("created_at", "updated_at"), _with_its_run("public.messages")),
}


def _instant(value: str) -> datetime:
    if value.isdigit():
        return datetime.fromtimestamp(int(value) / 1e9, UTC)
    parsed = datetime.fromisoformat(value)
    # completed_at and callback_sent_at are UTC without saying so.
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def _fraction(key: str) -> float:
    """Turn a key into a number in [0, 1), always the same."""
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest()) / 2**48


def _text(row: Record, column: str) -> str:
    value = row[column]
    if value is None:
        raise StretchError(f"{column} is NULL in a row where it must not be: {row.get('id')}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Read one gzipped dump, write another."""
    parser = argparse.ArgumentParser(
        prog="python -m trajectory_pipeline.demo.letta_sample.stretch", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("original", type=Path, help="gzipped plain pg_dump, times in UTC")
    parser.add_argument("out", type=Path, help="gzipped plain SQL to write")
    given = parser.parse_args(arguments)
    text = dump.render(stretch(dump.read(given.original)))
    # No file name and no time in the header: with the same zlib, the same rows give the same bytes.
    given.out.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main()
