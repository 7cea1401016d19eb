"""Rows for COPY: compiles prototypes, and fills in the ids, times and texts of each copy."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from benchmarks.letta_database.prose import Prose, copy_escaped
from benchmarks.letta_database.prototypes import MARK, Prototype
from benchmarks.letta_database.sampled import Row

_EPOCH_NS = 1_000


@dataclass(frozen=True)
class Length:
    """How long texts of a kind are: log-normal, in characters, with its mean and the sigma of the logarithm."""

    mean: float
    sigma: float

    def draw(self, rng: random.Random) -> float:
        """Return one length."""
        # The mean of a log-normal is exp(mu + sigma²/2).
        return self.mean * rng.lognormvariate(-self.sigma * self.sigma / 2, self.sigma)


LENGTHS: Mapping[str, Length] = {
    "user": Length(300, 1.0),
    "assistant": Length(450, 1.0),
    "reasoning": Length(600, 0.8),
    "argument": Length(120, 1.0),
    "tool_return": Length(1_100, 1.3),
}
"""Of what is added to the sample's own texts, which are short: so that a run has about 21 kB of JSON."""


@dataclass(frozen=True)
class _Template:
    """A table's rows of a prototype: literals with, between each two, the number of a value."""

    literals: tuple[str, ...]
    values: tuple[int, ...]

    def filled(self, values: Sequence[str]) -> str:
        parts = list(self.literals)
        return (
            "".join(
                piece
                for literal, number in zip(parts, self.values, strict=False)
                for piece in (literal, values[number])
            )
            + parts[-1]
        )


@dataclass(frozen=True)
class Compiled:
    """A prototype, ready to be filled in quickly.

    Attributes:
        prototype: its source.
        templates: by table.
        marks: kind and arguments of each value.
        ids: how many random ids a copy needs.
        stretches: kind of each text.
    """

    prototype: Prototype
    templates: dict[str, _Template]
    marks: tuple[tuple[str, str], ...]
    ids: int
    stretches: tuple[str, ...]


def compile_prototype(prototype: Prototype, columns: Mapping[str, Sequence[str]]) -> Compiled:
    """Take a prototype's rows apart at its marks."""
    texts: dict[str, list[str]] = defaultdict(list)
    for table, row in prototype.rows:
        texts[table].append(copy_line(row, columns[table]))
    numbers: dict[tuple[str, str], int] = {}
    marks: list[tuple[str, str]] = []
    templates: dict[str, _Template] = {}
    for table, lines in texts.items():
        pieces = MARK.split("".join(lines))
        values = []
        for kind, arguments in zip(pieces[1::3], pieces[2::3], strict=True):
            # Each sequence id is new; every other mark has the same value wherever it occurs.
            key = (kind, str(len(marks)) if kind == "s" else arguments)
            if key not in numbers:
                numbers[key] = len(marks)
                marks.append((kind, arguments))
            values.append(numbers[key])
        templates[table] = _Template(tuple(pieces[0::3]), tuple(values))
    stretches = {int(a.split(":")[0]): a.split(":")[1] for kind, a in marks if kind == "x"}
    return Compiled(
        prototype,
        templates,
        tuple(marks),
        ids=1 + max((int(arguments[:-1]) for kind, arguments in marks if kind == "i"), default=-1),
        stretches=tuple(stretches[number] for number in sorted(stretches)),
    )


@dataclass(frozen=True)
class Copy:
    """What is particular to one copy of a prototype.

    Attributes:
        ends: when each of its runs ends, aware.
        first_sequence_id: of its messages.
        agent_copy: which copy of the sample's agents it is about.
    """

    ends: tuple[datetime, ...]
    first_sequence_id: int
    agent_copy: int


def fill(
    compiled: Compiled,
    copy: Copy,
    rng: random.Random,
    prose: Prose,
    agent_id: Callable[[str, int], str],
    length: float = 1.0,
) -> dict[str, str]:
    """Return the rows of one copy by table, as text for COPY.

    Args:
        compiled: which prototype.
        copy: whose ends are one for each of its runs.
        rng: draws ids and texts.
        prose: where texts come from.
        agent_id: returns the digits of an agent's or conversation's copy.
        length: by which the length of every text is multiplied.
    """
    digits = rng.randbytes(16 * compiled.ids).hex()
    stretches = [prose.draw(rng, length * LENGTHS[kind].draw(rng)) for kind in compiled.stretches]
    sequence_id = copy.first_sequence_id
    values: list[str] = []
    for kind, arguments in compiled.marks:
        if kind == "i":
            place = 32 * int(arguments[:-1])
            d = digits[place : place + 32]
            values.append(uuid_text(d) if arguments[-1] == "u" else d[:24])
        elif kind == "t":
            values.append(_time_text(copy.ends, arguments))
        elif kind == "x":
            number, _, depth = arguments.split(":")
            values.append(prose.text(stretches[int(number)], int(depth)))
        elif kind == "s":
            values.append(str(sequence_id))
            sequence_id += 1
        elif kind == "a":
            values.append(agent_id(arguments, copy.agent_copy))
        else:
            moment = _moment(copy.ends, arguments)
            values.append(str(round(moment.timestamp() * 1_000_000) * _EPOCH_NS))
    return {table: template.filled(values) for table, template in compiled.templates.items()}


def copy_line(row: Row, columns: Sequence[str]) -> str:
    """Return a row in COPY's text format, marks left as they are."""
    return "\t".join("\\N" if row[name] is None else copy_escaped(str(row[name])) for name in columns) + "\n"


def uuid_text(digits: str) -> str:
    """Return 32 hex digits in the form of a random UUID (version 4)."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _moment(ends: tuple[datetime, ...], arguments: str) -> datetime:
    run, _, offset = arguments[:-1].partition(":")
    return ends[int(run)] + timedelta(microseconds=int(offset))


def _time_text(ends: tuple[datetime, ...], arguments: str) -> str:
    moment = _moment(ends, arguments)
    return str(moment) if arguments[-1] == "z" else str(moment)[:-6]
