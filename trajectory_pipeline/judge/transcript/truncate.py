"""Shortens long, repeated and encoded text, each time with a line that says how much is left out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_REPEATED_FROM = 1_000
_REPEATED_KEEPS = 300
"""Characters from which a text that was shown before is shortened, and how many are then shown."""
_ENCODED = re.compile(r"[A-Za-z0-9+/_=-]{2000,}")
"""A run of characters as base64 makes it: an image, an archive, a signature."""


def cut(text: str, limit: int) -> str:
    """Return at most so many characters of a text, and how many are left out."""
    return text if len(text) <= limit else f"{text[:limit]} [… {len(text) - limit} characters left out …]"


@dataclass(frozen=True)
class Line:
    """A line that is shown; one that is not ``verbatim`` is our own word on what is not."""

    text: str
    verbatim: bool


class Truncation:
    """Shortens texts, the same each time, and keeps count for each message.

    What was shown before in whole counts as shown.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shown_in: dict[str, str] = {}
        self._message = ""
        self.content_characters = 0
        self.shown_characters = 0

    def start_message(self, message: str) -> None:
        """Begin to count for a message."""
        self._message, self.content_characters, self.shown_characters = message, 0, 0

    def truncate(self, text: str, *, whole: bool = False) -> list[Line]:
        """Return a text as lines.

        Args:
            text: redacted already: a secret that is cut in two would not be found.
            whole: whether it is shown however long it is, as errors are.
        """
        self.content_characters += len(text)
        before = self._shown_in.get(text) if len(text) >= _REPEATED_FROM else None
        if before is not None:
            self.shown_characters += len(text)
            return list(_cut(text, _REPEATED_KEEPS, f", which stand in {before} too"))
        lines = list(self._cut_encoded(text, whole=whole))
        shown = sum(len(line.text) + 1 for line in lines if line.verbatim)
        self.shown_characters += min(shown, len(text)) if any(not line.verbatim for line in lines) else len(text)
        if len(text) >= _REPEATED_FROM and all(line.verbatim for line in lines):
            self._shown_in[text] = self._message
        return lines

    def _cut_encoded(self, text: str, *, whole: bool) -> Iterator[Line]:
        at = 0
        for found in _ENCODED.finditer(text):
            yield from self._cut(text[at : found.start()], whole=whole)
            yield Line(f"[… {found.end() - found.start()} characters of encoded data left out …]", verbatim=False)
            at = found.end()
        yield from self._cut(text[at:], whole=whole)

    def _cut(self, text: str, *, whole: bool) -> Iterator[Line]:
        if whole or len(text) <= self._limit:
            yield from (Line(line, verbatim=True) for line in text.splitlines())
        else:
            yield from _cut(text, self._limit, "")


def _cut(text: str, limit: int, why: str) -> Iterator[Line]:
    head, tail = limit * 2 // 3, limit // 3
    yield from (Line(line, verbatim=True) for line in text[:head].splitlines())
    yield Line(f"[… {len(text) - head - tail} characters left out{why} …]", verbatim=False)
    yield from (Line(line, verbatim=True) for line in text[-tail:].splitlines())


def shorten_to_bytes(lines: Sequence[Line], max_bytes: int) -> list[tuple[int, Line]]:
    """Return lines shortened to a number of UTF-8 bytes, head and tail, however few they are.

    For one message that is larger than a window. Each line counts with three bytes of its own for what
    indents and ends it.

    Returns:
        Each line with the number of the one that it is, or is a piece of.
    """
    numbered = list(enumerate(lines))
    head, left = _take(numbered, max_bytes * 2 // 3)
    tail, between = _take(left[::-1], max_bytes // 3, backwards=True)
    missing = sum(len(line.text) for _, line in between)
    if not missing:
        return [*head, *tail[::-1]]
    number = head[-1][0] if head else 0
    return [*head, (number, Line(f"[… {missing} characters left out …]", verbatim=False)), *tail[::-1]]


_LINE_BYTES = 3
_Numbered = list[tuple[int, Line]]


def _take(lines: _Numbered, max_bytes: int, *, backwards: bool = False) -> tuple[_Numbered, _Numbered]:
    """Take as many lines as fit, the last one in part; returns these, and the rest."""
    taken: _Numbered = []
    for place, (number, line) in enumerate(lines):
        encoded = line.text.encode("utf-8", "surrogatepass")
        if len(encoded) + _LINE_BYTES <= max_bytes:
            max_bytes -= len(encoded) + _LINE_BYTES
            taken.append((number, line))
            continue
        part = max(max_bytes - _LINE_BYTES, 0)
        if not part or not line.verbatim:
            return taken, lines[place:]
        piece = (encoded[-part:] if backwards else encoded[:part]).decode("utf-8", "ignore")
        if not piece:
            return taken, lines[place:]
        remaining = line.text[: -len(piece)] if backwards else line.text[len(piece) :]
        taken.append((number, Line(piece, verbatim=True)))
        return taken, [(number, Line(remaining, verbatim=True)), *lines[place + 1 :]]
    return taken, []
