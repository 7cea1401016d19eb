"""Plain-text pg_dump files, taken apart and put together again.

Belongs here: the format (statements, COPY blocks, the escapes of COPY's text format), without knowing any table. Does
not belong here: what the rows mean, databases, connections.

`parse` loses nothing: `render(parse(text)) == text` for every dump it accepts.
"""

import gzip
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# What may hold a semicolon that ends nothing, and the semicolon that does. Strings are read as pg_dump writes them,
# with standard_conforming_strings on: a backslash escapes only in E'…'.
_TOKEN = re.compile(
    r"""
      --[^\n]*
    | (?P<block_comment> /\* )
    | (?<![\w$]) [eE] ' (?: [^'\\] | '' | \\. )* '
    | ' (?: [^'] | '' )* '
    | " (?: [^"] | "" )* "
    | (?<![\w$]) (?P<dollar> \$ (?: [^\W\d]\w* )? \$ )
    | (?P<open_quote> ['"] )
    | (?P<end> ; )
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_COMMENT_EDGE = re.compile(r"/\*|\*/")
_COPY = re.compile(r"COPY\s+(?P<table>\S+)\s+\((?P<columns>[^)]*)\)\s+FROM\s+stdin;", re.IGNORECASE)
_BLANK = re.compile(r"\s*")

_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
NULL = r"\N"


@dataclass(frozen=True)
class Statement:
    """One SQL statement with the comments and blanks before it, through its semicolon."""

    text: str


@dataclass(frozen=True)
class Remark:
    """Text that no server is to be sent: comments after the last statement, psql's own lines such as `restrict`."""

    text: str


@dataclass(frozen=True)
class CopyBlock:
    """A `COPY … FROM stdin` statement and its rows; `rows` hold the fields as they stand in the file, still escaped."""

    statement: str
    table: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        """The block as it stands in a dump."""
        return f"{self.statement}\n{self.data}\\.\n"

    @property
    def data(self) -> str:
        """The rows as COPY wants them on the wire, without the end marker."""
        return "".join("\t".join(row) + "\n" for row in self.rows)

    def records(self) -> Iterator[dict[str, str | None]]:
        """Each row as column → value, unescaped; SQL NULL is None."""
        for row in self.rows:
            yield dict(zip(self.columns, map(unescape, row), strict=True))


Part = Statement | CopyBlock | Remark


class DumpError(ValueError):
    """The text is not a plain pg_dump file that can be taken apart; the message says where."""


def read(path: Path) -> tuple[Part, ...]:
    """Parse a gzipped dump.

    Raises:
        DumpError: not a plain dump. OSError: not readable, or not gzip.
    """
    return parse(gzip.decompress(path.read_bytes()).decode("utf-8"))


def parse(text: str) -> tuple[Part, ...]:
    """Take a plain dump apart, in order.

    Not supported, as no dump of Letta's tables has it: SQL-standard function bodies (`BEGIN ATOMIC`), whose inner
    semicolons only a full SQL parser tells from the last one.

    Raises:
        DumpError: a quote or COPY block that does not end, a psql command, a last statement without semicolon.
    """
    return tuple(_parts(text))


def render(parts: Iterable[Part]) -> str:
    """Write the text that `parse` would take apart into these parts."""
    return "".join(part.text for part in parts)


def copy_blocks(parts: Iterable[Part]) -> Iterator[CopyBlock]:
    """Pick the COPY blocks, in order."""
    return (part for part in parts if isinstance(part, CopyBlock))


def unescape(field: str) -> str | None:
    """Read one field of COPY's text format; None is SQL NULL."""
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


def _parts(text: str) -> Iterator[Part]:
    begin = 0
    while begin < len(text):
        body, end = _statement(text, begin)
        if text.startswith("\\", body):
            end = _line_end(text, body)
            if not text.startswith(("\\restrict ", "\\unrestrict "), body):
                raise DumpError(f"line {_line(text, body)}: a psql command, which only psql can carry out")
            yield Remark(text[begin:end])
        elif end is None:
            if body < len(text):
                raise DumpError(f"line {_line(text, body)}: a statement without its semicolon")
            yield Remark(text[begin:])
            return
        elif copy := _COPY.fullmatch(text, body, end):
            rows, after = _copy_rows(text, end)
            columns = tuple(name.strip().strip('"') for name in copy["columns"].split(","))
            for number, row in enumerate(rows, start=1):
                if len(row) != len(columns):
                    raise DumpError(f"{copy['table']}, row {number}: {len(row)} fields for {len(columns)} columns")
            yield CopyBlock(text[begin:end], copy["table"], columns, rows)
            end = after
        else:
            yield Statement(text[begin:end])
        begin = end


def _statement(text: str, begin: int) -> tuple[int, int | None]:
    """Where the next statement's first word stands, and where the statement ends (None: the text ends before)."""
    body = _skip_blank(text, begin)
    position = body
    while token := _TOKEN.search(text, position):
        # A psql command is a line, not a statement: what follows on later lines is not looked at.
        if text.startswith("\\", body):
            break
        position = token.end()
        if token["end"]:
            return body, position
        if token["open_quote"]:
            raise DumpError(f"line {_line(text, token.start())}: a quote that is never closed")
        if token["block_comment"]:
            position = _after_block_comment(text, token.start())
        elif token["dollar"]:
            closing = text.find(token["dollar"], position)
            if closing < 0:
                raise DumpError(f"line {_line(text, token.start())}: {token['dollar']} is never closed")
            position = closing + len(token["dollar"])
        if token.start() == body and token[0].startswith(("--", "/*")):
            body = position = _skip_blank(text, position)
    return body, None


def _after_block_comment(text: str, start: int) -> int:
    depth = 0
    for edge in _BLOCK_COMMENT_EDGE.finditer(text, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    raise DumpError(f"line {_line(text, start)}: a comment that is never closed")


def _copy_rows(text: str, end: int) -> tuple[tuple[tuple[str, ...], ...], int]:
    """Read the rows after a COPY statement that ends at `end`; say also where the text goes on."""
    if not text.startswith("\n", end):
        raise DumpError(f"line {_line(text, end)}: the rows of a COPY block begin on the line after it")
    first = end + 1
    # Searched from the newline before the first row, so that an empty block is found too.
    closing = text.find("\n\\.\n", first - 1)
    if closing < 0:
        raise DumpError(f"line {_line(text, end)}: a COPY block without its end marker")
    # Split at newlines only: str.splitlines would also split at characters that are data here (U+2028, U+0085).
    lines = text[first:closing].split("\n") if closing >= first else []
    return tuple(tuple(line.split("\t")) for line in lines), closing + len("\n\\.\n")


def _skip_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _line_end(text: str, position: int) -> int:
    newline = text.find("\n", position)
    return len(text) if newline < 0 else newline + 1


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
