"""What a query asks for: its words, what must stand in a text, and what must not."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trajectory_pipeline.errors import QueryError

LONGEST_QUERY = 2_000
"""Characters."""
_LONGEST_WORD = 2_046
"""Bytes of a word that Postgres can search for."""
_PART = re.compile(r"'(?:[^'\\]|''|\\.)*'|<->|<\d+>|[!&|]", re.DOTALL)
_QUOTED = re.compile(r'(-?)"([^"]*)(?:"|$)')


@dataclass(frozen=True, slots=True)
class WordQuery:
    """The words of a query, each as the text of a ``tsquery``.

    Attributes:
        terms: words, and phrases: what is quoted, hyphenated or joined by an apostrophe. A text may have any of them.
        required: quoted phrases: a text must have all of them.
        excluded: words and phrases after a minus: a text must have none of them.
    """

    terms: tuple[str, ...]
    required: tuple[str, ...]
    excluded: tuple[str, ...]


def check_query(query: str) -> str:
    """Return a query as Postgres can take it.

    A word that is longer than Postgres's longest (2,046 bytes) stands in no text's words, and is left out.

    Raises:
        QueryError: it is blank, too long, or holds what no stored text can hold.
    """
    if not query.strip():
        raise QueryError("The query is empty: say in a few words what to look for.")
    if len(query) > LONGEST_QUERY:
        raise QueryError(
            f"The query has {len(query):,} characters, and {LONGEST_QUERY:,} are allowed: say in a few words what to"
            " look for."
        )
    if "\0" in query or any("\ud800" <= character <= "\udfff" for character in query):
        raise QueryError("The query holds NUL or half of a surrogate pair, which no stored text does: remove it.")
    return " ".join(word for word in query.split() if len(word.encode()) <= _LONGEST_WORD)


def quoted_phrases(query: str) -> list[str]:
    """Return what is quoted in a query and has no minus before it."""
    return [phrase for minus, phrase in _QUOTED.findall(query) if phrase.strip() and not minus]


def word_query(tsquery: str, phrases: Sequence[str]) -> WordQuery:
    """Return the words of a query.

    Args:
        tsquery: text of the query's ``websearch_to_tsquery``: words and phrases, negated or not, with ``&`` and ``|``.
        phrases: text of the ``phraseto_tsquery`` of each quoted phrase.
    """
    terms: list[str] = []
    excluded: list[str] = []
    group: list[str] = []
    negated, alternatives = False, False
    for part in [*_PART.findall(tsquery), "&"]:
        if part == "!":
            negated = True
        elif part in ("&", "|"):
            alternatives |= part == "|"
            if group:
                (excluded if negated else terms).append(" ".join(group))
            group, negated = [], False
        else:
            group.append(part)
    # With "or", none of the alternatives is a must.
    required = () if alternatives else tuple(dict.fromkeys(phrase for phrase in phrases if phrase))
    return WordQuery(tuple(dict.fromkeys(terms)), required, tuple(dict.fromkeys(excluded)))


def word_weight(documents: int, with_word: int) -> float:
    """Return the inverse document frequency of a word, as BM25 has it: more than 0, the more the rarer it is."""
    return math.log(1 + (documents - with_word + 0.5) / (with_word + 0.5))
