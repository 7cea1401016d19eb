"""Reads the sample's data file, a plain-text ``pg_dump``: SQL statements and COPY blocks, in order."""

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

NULL = r"\N"

_COPY = re.compile(r"COPY (?P<table>\S+) \((?P<columns>[^)]*)\) FROM stdin;")
_END_OF_ROWS = r"\."
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


@dataclass(frozen=True)
class Statement:
    """One SQL statement, with its semicolon."""

    text: str


@dataclass(frozen=True)
class CopyBlock:
    """A ``COPY … FROM stdin`` statement and its rows; the fields are still escaped."""

    statement: str
    table: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def data(self) -> str:
        """The rows in COPY's text format, without the end marker."""
        return "".join("\t".join(row) + "\n" for row in self.rows)

    def records(self) -> Iterator[dict[str, str | None]]:
        """Each row as column → value, unescaped; SQL NULL is None."""
        for row in self.rows:
            yield dict(zip(self.columns, map(unescape, row), strict=True))


Part = Statement | CopyBlock


def read(path: Path) -> tuple[Part, ...]:
    """Parse a gzipped dump."""
    return tuple(parse(gzip.decompress(path.read_bytes()).decode("utf-8")))


def parse(text: str) -> Iterator[Part]:
    """Yield the parts of a dump of tables and their data; comments are dropped.

    A statement ends at a line that ends with a semicolon: there are no function bodies in the sample.
    """
    # Split at newlines only: str.splitlines would also split at characters that are data here (U+2028, U+0085).
    lines = iter(text.split("\n"))
    statement: list[str] = []
    for line in lines:
        if copy := _COPY.fullmatch(line):
            columns = tuple(name.strip('"') for name in copy["columns"].split(", "))
            rows = tuple(tuple(row.split("\t")) for row in takewhile(lambda row: row != _END_OF_ROWS, lines))
            yield CopyBlock(line, copy["table"], columns, rows)
        elif line and not line.startswith("--"):
            statement.append(line)
            if line.endswith(";"):
                yield Statement("\n".join(statement))
                statement = []


def copy_blocks(parts: Iterable[Part]) -> Iterator[CopyBlock]:
    """Yield the COPY blocks, in order."""
    return (part for part in parts if isinstance(part, CopyBlock))


def unescape(field: str) -> str | None:
    """Return the value of one field of COPY's text format; None is SQL NULL."""
    if field == NULL:
        return None
    return _ESCAPE.sub(_unescaped, field) if "\\" in field else field


def _unescaped(match: re.Match[str]) -> str:
    octal, hexadecimal, letter = match.groups()
    if octal:
        return chr(int(octal, 8))
    if hexadecimal:
        return chr(int(hexadecimal, 16))
    return _ESCAPED.get(letter, letter)
