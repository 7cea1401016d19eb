"""Generates a Letta database and writes it to Postgres by COPY from several processes."""

import itertools
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from multiprocessing import get_context

import psycopg
from psycopg import sql

from benchmarks.letta_database import tables
from benchmarks.letta_database.others import insert_others
from benchmarks.letta_database.prose import Prose, make_prose
from benchmarks.letta_database.prototypes import Prototype, compose
from benchmarks.letta_database.rows import Compiled, Copy, compile_prototype, copy_line, fill, uuid_text
from benchmarks.letta_database.sampled import Row, Sample, read_sample, text

_PROTOTYPES = 1_000
_CHAINS_IN_A_CHUNK = 500
_SYSTEM_PROMPT_CHARACTERS = 5_000
_FLUSH_BYTES = 8 * 2**20
# A worker of its own, whatever threads the caller has.
_PROCESSES = get_context("spawn")


@dataclass(frozen=True)
class DatabaseSpec:
    """What a generated database holds.

    Attributes:
        runs: terminal ones; others come on top, as often as in the sample.
        hours: over how many they are spread, evenly; 1 puts all into one partition.
        first_hour: start of the first, UTC.
        seed: the same seed makes the same rows.
        giant_messages: messages of one run more, which ends in the first hour; 0 for none.
        traced: share of the steps whose LLM call is recorded in ``provider_traces``; 42 kB each.
        agents: copies of each of the sample's agents; None for one per 2,000 runs.
        other_messages: messages more, of runs that ended before the first hour, with short texts.
        extra_loops: tool calls more in a run, with their returns, on the average.
        length: of the texts that are added, by which all are multiplied.
    """

    runs: int
    hours: int = 1
    first_hour: datetime = datetime(2025, 6, 1, tzinfo=UTC)
    seed: int = 1
    giant_messages: int = 0
    traced: float = 0.0
    agents: int | None = None
    other_messages: int = 0
    extra_loops: float = 4.3
    length: float = 1.0

    @property
    def agent_copies(self) -> int:
        """Copies of each of the sample's agents."""
        return self.agents or max(1, self.runs // 2_000)


@dataclass(frozen=True)
class Generated:
    """What was generated.

    Attributes:
        rows: by table.
        seconds: that it took, indexes included.
    """

    rows: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class _Planned:
    """One copy of a prototype, and its position."""

    prototype: int
    copy: Copy


class Plan:
    """The rows to write, in chunks that can be generated independently."""

    def __init__(self, spec: DatabaseSpec) -> None:
        self.spec = spec
        self.sample: Sample = read_sample()
        self.prose: Prose = make_prose(spec.seed)

    @cached_property
    def prototypes(self) -> list[Compiled]:
        """The prototypes: every chain of the sample, in turn, lengthened by chance; the last one is the giant run."""
        rng = random.Random(f"prototypes {self.spec.seed}")
        chains = self.sample.chains
        # For few runs, each chain once: composing all would take longer than writing.
        count = min(_PROTOTYPES, max(len(chains), self.spec.runs // 10))
        made = []
        for chain in itertools.islice(itertools.cycle(chains), count):
            extra = [2 * _geometric(rng, self.spec.extra_loops) for _ in chain]
            made.append(self._compiled(compose(self.sample, chain, extra, rng)))
        if self.spec.giant_messages:
            longest = max(chains, key=lambda chain: len(chain[0].messages) if len(chain) == 1 else 0)
            extra = [self.spec.giant_messages - len(longest[0].messages)]
            made.append(self._compiled(compose(self.sample, longest, extra, rng)))
        return made

    @cached_property
    def chunks(self) -> list[list[_Planned]]:
        """All copies, in order of time."""
        rng = random.Random(f"plan {self.spec.seed}")
        giant = len(self.prototypes) - 1 if self.spec.giant_messages else None
        usual = [place for place in range(len(self.prototypes)) if place != giant]
        single = [place for place in usual if self.prototypes[place].prototype.terminal_runs <= 1]
        chosen = [] if giant is None else [giant]
        left = self.spec.runs
        while left > 0:
            place = rng.choice(usual)
            if self.prototypes[place].prototype.terminal_runs > left:
                place = rng.choice(single)
            chosen.append(place)
            left -= self.prototypes[place].prototype.terminal_runs
        hours = sorted(rng.randrange(self.spec.hours) for _ in chosen)
        if giant is not None:
            hours[0] = 0
        planned = []
        next_sequence_id = 1_000_000
        for hour, place in zip(hours, chosen, strict=True):
            prototype = self.prototypes[place].prototype
            copy = Copy(self._ends(rng, hour, prototype.runs), next_sequence_id, rng.randrange(self.spec.agent_copies))
            next_sequence_id += prototype.messages
            planned.append(_Planned(place, copy))
        return [planned[at : at + _CHAINS_IN_A_CHUNK] for at in range(0, len(planned), _CHAINS_IN_A_CHUNK)]

    def agent_digits(self, digits: str, copy: int) -> str:
        """Return the digits of a copy of an agent's or conversation's id."""
        if (digits, copy) not in self._agent_digits:
            rng = random.Random(f"{self.spec.seed} {digits} {copy}")
            self._agent_digits[digits, copy] = uuid_text(rng.randbytes(16).hex())
        return self._agent_digits[digits, copy]

    @cached_property
    def _agent_digits(self) -> dict[tuple[str, int], str]:
        return {}

    def chunk(self, number: int) -> Iterator[dict[str, str]]:
        """Yield the rows of a chunk by table, chain by chain, as text for COPY."""
        rng = random.Random(f"chunk {number} {self.spec.seed}")
        for planned in self.chunks[number]:
            filled = fill(
                self.prototypes[planned.prototype], planned.copy, rng, self.prose, self.agent_digits, self.spec.length
            )
            traces = self._traces(rng, filled.get("steps", ""))
            yield {**filled, "provider_traces": traces} if traces else filled

    def agents(self) -> Iterator[dict[str, str]]:
        """Yield the rows of agents and of what they have, agent by agent."""
        rng = random.Random(f"agents {self.spec.seed}")
        columns = self.sample.columns
        organizations = "".join(copy_line(row, columns["organizations"]) for row in self.sample.rows["organizations"])
        tool_ids, tools = tables.tool_rows(rng, self.prose)
        yield {"organizations": organizations, "tools": tools}
        like = next(row for row in self.sample.rows["messages"] if row["role"] == "system")
        for number, (agent, copy) in enumerate(
            itertools.product(self.sample.rows["agents"], range(self.spec.agent_copies))
        ):
            yield self._agent(rng, agent, copy, like, number + 1) | {
                "tools_agents": "".join(
                    f"agent-{self.agent_digits(_digits(agent), copy)}\t{tool_id}\n"
                    for tool_id in sorted(rng.sample(tool_ids, tables.TOOLS_OF_AN_AGENT))
                )
            }

    def _agent(self, rng: random.Random, agent: Row, copy: int, like: Row, sequence_id: int) -> dict[str, str]:
        """Return an agent's rows: its own, its tags, its conversations, and the message with its system prompt."""
        stretch = self.prose.draw(rng, rng.uniform(0.5, 1.5) * _SYSTEM_PROMPT_CHARACTERS)
        message_id = f"message-{uuid_text(rng.randbytes(16).hex())}"
        agent_id = f"agent-{self.agent_digits(_digits(agent), copy)}"
        own = {**agent, "id": agent_id, "system": "@0@", "message_ids": f'["{message_id}"]'}
        system = {
            **like,
            "id": message_id,
            "agent_id": agent_id,
            "organization_id": agent["organization_id"],
            "content": '[{"type": "text", "text": "@1@", "signature": null}]',
            "sequence_id": str(sequence_id),
            "step_id": None,
            "run_id": None,
            "conversation_id": None,
            "otid": None,
        }
        conversations = [
            {**row, "id": f"conv-{self.agent_digits(_digits(row), copy)}", "agent_id": agent_id}
            for row in self.sample.rows["conversations"]
            if row["agent_id"] == agent["id"]
        ]
        tags = [
            {**row, "agent_id": agent_id} for row in self.sample.rows["agents_tags"] if row["agent_id"] == agent["id"]
        ]
        columns = self.sample.columns
        rows = {"agents": [own], "conversations": conversations, "agents_tags": tags, "messages": [system]}
        lines = {table: "".join(copy_line(row, columns[table]) for row in of) for table, of in rows.items()}
        for table, depth in (("agents", 0), ("messages", 1)):
            lines[table] = lines[table].replace(f"@{depth}@", self.prose.text(stretch, depth))
        return {table: line for table, line in lines.items() if line}

    def _traces(self, rng: random.Random, steps: str) -> str:
        if not (self.spec.traced and steps):
            return ""
        place = self.sample.columns["steps"].index("id")
        ids = [line.split("\t")[place] for line in steps.splitlines()]
        return "".join(tables.trace_row(rng, self.prose, i) for i in ids if rng.random() < self.spec.traced)

    def _compiled(self, prototype: Prototype) -> Compiled:
        return compile_prototype(prototype, self.sample.columns)

    def _ends(self, rng: random.Random, hour: int, runs: int) -> tuple[datetime, ...]:
        """Return when the runs of a chain end: within one hour, in order."""
        start = self.spec.first_hour + timedelta(hours=hour)
        return tuple(start + timedelta(seconds=second) for second in sorted(rng.uniform(0, 3599) for _ in range(runs)))


def generate(url: str, spec: DatabaseSpec, *, processes: int = 2) -> Generated:
    """Create Letta's tables in an empty database and fill them; the same rows for the same ``spec``.

    Args:
        url: of an empty Postgres database.
        spec: contents of the database.
        processes: that write at the same time; with 1 the rows also stand in the same order on the disk.
    """
    started = time.monotonic()
    plan = Plan(spec)
    with psycopg.connect(url) as connection:
        for statement in (*plan.sample.statements_before, *tables.STATEMENTS):
            connection.execute(statement.encode())
    with psycopg.connect(url) as connection:
        _write(connection, plan, plan.agents())
    chunks = range(len(plan.chunks))
    shares = [chunks[number::processes] for number in range(processes)]
    if processes == 1:
        _write_chunks(url, plan, chunks)
    else:
        with ProcessPoolExecutor(processes, mp_context=_PROCESSES) as pool:
            list(pool.map(_write_chunks, [url] * processes, [plan] * processes, shares))
    if spec.other_messages:
        with psycopg.connect(url) as connection:
            insert_others(connection, spec.other_messages, spec.first_hour.isoformat())
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path = public")
        connection.execute("SET maintenance_work_mem = '256MB'")
        for statement in (*plan.sample.statements_after, *tables.INDEXES):
            connection.execute(statement.encode())
        connection.execute("SELECT setval('public.message_seq_id', (SELECT max(sequence_id) FROM messages))")
        connection.execute("VACUUM (ANALYZE)")
        names = (*plan.sample.columns, *tables.COLUMNS)
        rows = {name: _count(connection, name) for name in names}
    return Generated(rows, time.monotonic() - started)


def _write_chunks(url: str, plan: Plan, chunks: Sequence[int]) -> None:
    with psycopg.connect(url) as connection:
        _write(connection, plan, (rows for number in chunks for rows in plan.chunk(number)))


def _write(connection: psycopg.Connection, plan: Plan, rows: Iterator[dict[str, str]]) -> None:
    columns = {**plan.sample.columns, **tables.COLUMNS}
    waiting: dict[str, list[str]] = defaultdict(list)
    held = 0
    for of_chain in rows:
        for table, lines in of_chain.items():
            waiting[table].append(lines)
            held += len(lines)
        if held > _FLUSH_BYTES:
            _flush(connection, columns, waiting)
            held = 0
    _flush(connection, columns, waiting)


def _flush(connection: psycopg.Connection, columns: dict[str, tuple[str, ...]], waiting: dict[str, list[str]]) -> None:
    for table, lines in waiting.items():
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier("public", table), sql.SQL(", ").join(map(sql.Identifier, columns[table]))
        )
        with connection.cursor().copy(statement) as copy:
            for line in lines:
                copy.write(line)
    connection.commit()
    waiting.clear()


def _count(connection: psycopg.Connection, table: str) -> int:
    found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("public", table))).fetchone()
    return int(found[0]) if found else 0


def _geometric(rng: random.Random, mean: float) -> int:
    """Draw a number of which each next one is less likely by the same factor, zero included."""
    if not mean:
        return 0
    return int(math.log(1 - rng.random()) / math.log(mean / (1 + mean)))


def _digits(row: Row) -> str:
    return text(row, "id").partition("-")[2]
