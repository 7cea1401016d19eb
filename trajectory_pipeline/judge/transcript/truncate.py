"""Shortens long, repeated and encoded text, each time with a line that says how much is left out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_REPEATED_FROM = 1_000
_REPEATED_KEEPS = 300
"""Characters from which a text that was shown before is shortened, and how many are then shown."""
_LINE_BYTES = 3
"""Bytes that indent and end a line."""
_ENCODED = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_=-]{2000,}")
"""A run of characters as base64 makes it: an image, an archive, a signature."""


def cut(text: str, limit: int) -> str:
    """Return at most so many characters of a text, and how many are left out."""
    return text if len(text) <= limit else f"{text[:limit]} [… {len(text) - limit} characters left out …]"


@dataclass(frozen=True)
class Line:
    """A line as it is shown; ``verbatim`` text may be quoted, a note of ours on what is not shown may not."""

    text: str
    verbatim: bool


_Numbered = list[tuple[int, Line]]


class Truncation:
    """Shortens texts, and counts for each message the characters that there are and that are shown.

    Text that was shown in full before counts as shown.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shown_in: dict[str, str] = {}
        self._message = ""
        self.content_characters = 0
        self.shown_characters = 0

    def start_message(self, message: str) -> None:
        """Count from zero, for the message of this id."""
        self._message, self.content_characters, self.shown_characters = message, 0, 0

    def truncate(self, text: str, *, whole: bool = False) -> list[Line]:
        """Return a text, which is redacted already, as lines; ``whole`` however long it is, as errors are.

        Redaction comes first because a secret that is cut in two would not be found.
        """
        self.content_characters += len(text)
        if text in self._shown_in:
            self.shown_characters += len(text)
            return list(_head_and_tail(text, _REPEATED_KEEPS, f", which stand in {self._shown_in[text]} too"))
        lines = list(self._cut_encoded(text, whole=whole))
        if all(line.verbatim for line in lines):
            self.shown_characters += len(text)
            if len(text) >= _REPEATED_FROM:
                self._shown_in[text] = self._message
        else:
            self.shown_characters += min(sum(len(line.text) + 1 for line in lines if line.verbatim), len(text))
        return lines

    def _cut_encoded(self, text: str, *, whole: bool) -> Iterator[Line]:
        at = 0
        for found in _ENCODED.finditer(text):
            yield from self._cut_long(text[at : found.start()], whole=whole)
            yield Line(f"[… {found.end() - found.start()} characters of encoded data left out …]", verbatim=False)
            at = found.end()
        yield from self._cut_long(text[at:], whole=whole)

    def _cut_long(self, text: str, *, whole: bool) -> Iterator[Line]:
        return _verbatim(text) if whole or len(text) <= self._limit else _head_and_tail(text, self._limit)


def _verbatim(text: str) -> Iterator[Line]:
    return (Line(line, verbatim=True) for line in text.splitlines())


def _head_and_tail(text: str, limit: int, reason: str = "") -> Iterator[Line]:
    head, tail = limit * 2 // 3, limit // 3
    yield from _verbatim(text[:head])
    yield Line(f"[… {len(text) - head - tail} characters left out{reason} …]", verbatim=False)
    yield from _verbatim(text[-tail:])


def shorten_to_bytes(lines: Sequence[Line], max_bytes: int) -> list[tuple[int, Line]]:
    """Return head and tail of lines, shortened to a number of UTF-8 bytes: each with its number among all of them.

    For one message that is larger than a window.
    """
    numbered = list(enumerate(lines))
    head, left = _take(numbered, max_bytes * 2 // 3)
    tail, between = _take(left[::-1], max_bytes // 3, backwards=True)
    missing = sum(len(line.text) for _, line in between)
    if not missing:
        return [*head, *tail[::-1]]
    number = head[-1][0] if head else 0
    return [*head, (number, Line(f"[… {missing} characters left out …]", verbatim=False)), *tail[::-1]]


def _take(lines: _Numbered, max_bytes: int, *, backwards: bool = False) -> tuple[_Numbered, _Numbered]:
    """Return as many lines as fit, the last one in part, and the rest."""
    taken: _Numbered = []
    for index, (number, line) in enumerate(lines):
        encoded = line.text.encode("utf-8", "surrogatepass")
        if len(encoded) + _LINE_BYTES <= max_bytes:
            max_bytes -= len(encoded) + _LINE_BYTES
            taken.append((number, line))
            continue
        part = max(max_bytes - _LINE_BYTES, 0)
        piece = (encoded[-part:] if backwards else encoded[:part]).decode("utf-8", "ignore") if part else ""
        if not piece or not line.verbatim:
            return taken, lines[index:]
        remaining = line.text[: -len(piece)] if backwards else line.text[len(piece) :]
        taken.append((number, Line(piece, verbatim=True)))
        return taken, [(number, Line(remaining, verbatim=True)), *lines[index + 1 :]]
    return taken, []
