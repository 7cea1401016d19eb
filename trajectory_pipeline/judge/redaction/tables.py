"""Secrets in a column that its head names: tables in Markdown or of a terminal, CSV, and SQL's INSERT."""

import re
from collections.abc import Callable, Iterator, Sequence

from trajectory_pipeline.judge.redaction.literals import folds_plainly, occurrences
from trajectory_pipeline.judge.redaction.span import Span
from trajectory_pipeline.judge.redaction.values import is_value

_HEAD = re.compile(
    r"(?i:[\w .-]{0,24}(?:pass(?:word|wd|phrase|code)?|pwd|passwort|contraseña|mot de passe|senha|secret|token"
    r"|(?:api|access|secret|private)[ _-]?key|credentials?))"
)
HINTS = frozenset(("pass", "pwd", "contrase", "senha", "secret", "token", "key", "credential"))
"""One of these stands in every head of a column of secrets, in any case."""
_LINE = re.compile(r"(?:[^\r\n\\]|\\(?![nr])){1,8192}")
_DELIMITERS = ("|", "\t", ",", ";")
_WIDE_GAP = re.compile(r"[ ]{2,64}")
_ROWS = 1_000
_INSERT = re.compile(r"(?i:\(([^()]{1,1024})\)\s{0,8}values\s{0,8}(?=\())")
_TUPLE = re.compile(r"""\(((?:[^()'"]|'[^']{0,512}'|"[^"]{0,512}"){1,64})\)\s{0,4},?\s{0,4}""")
_SQL_VALUE = re.compile(r"""'([^']{0,512})'|"([^"]{0,512})"|(,)""")

_Cells = list[tuple[int, int]]


def find_table_secrets(text: str, checkpoint: Callable[[], None]) -> Iterator[Span]:
    """Yield the spans of cells in columns of secrets."""
    lowered = text.lower()
    if not any(hint in lowered for hint in HINTS):
        return
    if "values" in lowered or not folds_plainly(text):
        yield from _inserted(text)
    hinted = _lines_with_hints(text, lowered)
    columns: Sequence[int] = ()
    delimiter, width, rows = "", 0, 0
    for line in _LINE.finditer(text):
        checkpoint()
        if columns:
            cells = _cells(text, line.start(), line.end(), delimiter)
            rows += 1
            if len(cells) == width and rows <= _ROWS:
                for column in columns:
                    start, end = cells[column]
                    if _is_secret(text[start:end], delimiter):
                        yield Span(start, end, "password")
                continue
            if rows == 1 and not text[line.start() : line.end()].strip(" -+=|"):
                continue
            columns = ()
        if not hinted(line.start(), line.end()):
            delimiter = ""
            continue
        for delimiter in _DELIMITERS:
            cells = _cells(text, line.start(), line.end(), delimiter)
            columns = [n for n, (start, end) in enumerate(cells) if _HEAD.fullmatch(text, start, end)]
            width, rows = len(cells), 0
            if columns and sum(start < end for start, end in cells) > 1:
                break
            columns = ()
        else:
            delimiter = ""
            cells = _cells(text, line.start(), line.end(), delimiter)
            if len(cells) > 1:
                columns = [n for n, (start, end) in enumerate(cells) if _HEAD.fullmatch(text, start, end)]
                width, rows = len(cells), 0


def _lines_with_hints(text: str, lowered: str) -> Callable[[int, int], bool]:
    """Return whether a hint is in a line; lines are asked for in order."""
    if len(lowered) != len(text):
        return lambda start, end: any(hint in text[start:end].lower() for hint in HINTS)
    spans = sorted((at, at + len(hint)) for hint in HINTS for at in occurrences(lowered, hint))
    first = 0

    def has_hint(start: int, end: int) -> bool:
        nonlocal first
        while first < len(spans) and spans[first][0] < start:
            first += 1
        at = first
        while at < len(spans) and spans[at][0] < end:
            if spans[at][1] <= end:
                return True
            at += 1
        return False

    return has_hint


def _is_secret(cell: str, delimiter: str) -> bool:
    # Lines of code are divided by commas and blanks too, but their words have no digits.
    is_odd = any(c.isdigit() or c in "!#$%&*+@^~" for c in cell)
    return is_value(cell) and len(cell.split()) == 1 and (delimiter == "|" or is_odd)


def _cells(text: str, start: int, end: int, delimiter: str) -> _Cells:
    """Return the spans of the cells of a line, without blanks and quotes around them."""
    cells: _Cells = []
    at = start
    if delimiter:
        if text.count(delimiter, start, end) == 0:
            return []
        while True:
            found = text.find(delimiter, at, end)
            stop = found if found >= 0 else end
            cells.append(_bared(text, at, stop))
            if found < 0:
                break
            at = found + 1
    else:
        for gap in _WIDE_GAP.finditer(text, start, end):
            if gap.start() > at:
                cells.append(_bared(text, at, gap.start()))
            at = gap.end()
        if at < end:
            cells.append(_bared(text, at, end))
    return cells


def _bared(text: str, start: int, end: int) -> tuple[int, int]:
    value = text[start:end]
    left = len(value) - len(value.lstrip(" \t\"'`*\\"))
    right = len(value) - len(value.rstrip(" \t\"'`*\\"))
    return (start + left, end - right) if left < len(value) else (start, start)


def _inserted(text: str) -> Iterator[Span]:
    for insert in _INSERT.finditer(text):
        names = [name.strip(" \"'`[]\n\t") for name in insert[1].split(",")]
        columns = {n for n, name in enumerate(names) if _HEAD.fullmatch(name)}
        at = insert.end()
        while columns and (row := _TUPLE.match(text, at)):
            number = 0
            for value in _SQL_VALUE.finditer(text, *row.span(1)):
                number += value[3] is not None
                if number in columns and value[3] is None and is_value(found := value[1] or value[2] or ""):
                    yield Span(value.start() + 1, value.start() + 1 + len(found), "password")
            at = row.end()
