"""A passage of a text around the words of a query."""

import re
from collections.abc import Iterable

LENGTH = 240
"""Characters, at most, without the ellipses."""
_LEXEME = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL)


def snippet(text: str, terms: Iterable[str]) -> str:
    """Return a passage on one line, around the first word of the query's rarest term that it has; else its beginning.

    Args:
        text: any text.
        terms: words and phrases as the text of a ``tsquery``, the most telling one first.
    """
    line = " ".join(text.split())
    if len(line) <= LENGTH:
        return line
    at = next((found.start() for term in terms if (found := _first(line, term))), 0)
    start = max(0, min(at - LENGTH // 3, len(line) - LENGTH))
    if start:
        # At a word's beginning, unless that would leave out what was found.
        start = min(line.find(" ", start) + 1 or start, at)
    end = start + LENGTH
    if end < len(line):
        end = max(line.rfind(" ", at + 1, end), at + LENGTH // 3)
    return f"{'… ' if start else ''}{line[start:end].strip()}{' …' if end < len(line) else ''}"


def _first(line: str, term: str) -> re.Match[str] | None:
    lexeme = _LEXEME.search(term)
    if lexeme is None:
        return None
    word = re.sub(r"\\(.)", r"\1", lexeme[1].replace("''", "'"))
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line, re.IGNORECASE)
