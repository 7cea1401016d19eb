"""Searches a text only where a pattern can match: at the literals that every match of it begins with."""

import re
from collections.abc import Iterator, Mapping

_FOLDED_BY_PATTERNS = re.compile("[\u0130\u0131\u017f\u212a]")
"""Characters that a pattern takes for i, s or k where case is ignored, but that ``str.lower`` does not make these."""

Starts = Mapping[str, tuple[int, ...]]
"""Literals in lower case, each with the numbers of characters before it at which a match may begin.

One of the literals stands, in any case, in every match. Searching for a literal is many times faster than for a
pattern that ignores case.
"""


def folds_plainly(text: str) -> bool:
    """Whether the lower case of a text has every literal of a pattern that ignores case."""
    return text.isascii() or not _FOLDED_BY_PATTERNS.search(text)


def occurrences(text: str, literal: str) -> list[int]:
    """Return where a literal begins in a text, overlapping ones too."""
    found = []
    at = text.find(literal)
    while at >= 0:
        found.append(at)
        at = text.find(literal, at + 1)
    return found


class Literals:
    """A text, and where literals stand in it; each literal is searched for once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lowered = text.lower()
        self._is_plain = folds_plainly(text)
        self._found: dict[str, list[int]] = {}

    def has_any(self, literals: tuple[str, ...]) -> bool:
        """Whether one of the literals is in the text, in any case."""
        return any(literal in self.lowered for literal in literals)

    def positions(self, literal: str) -> list[int]:
        """Return where a literal in lower case begins."""
        found = self._found.get(literal)
        if found is None:
            found = self._found[literal] = occurrences(self.lowered, literal)
        return found

    def finditer(self, pattern: re.Pattern[str], starts: Starts) -> Iterator[re.Match[str]]:
        """Yield what ``pattern.finditer(text)`` does, if ``starts`` are true of the pattern."""
        if not starts or not self._is_plain:
            yield from pattern.finditer(self.text)
            return
        end = 0
        for at in sorted(
            {at - back for word, backs in starts.items() for at in self.positions(word) for back in backs}
        ):
            if at >= end and (match := pattern.match(self.text, at)):
                yield match
                end = match.end()
