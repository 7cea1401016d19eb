"""Which requirement of a person is which of the judge: by the evidence that both name, and by their words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

MIN_SIMILARITY = 0.25
"""Two statements that have less in common are not taken for the same requirement."""
_WORD = re.compile(r"\d[\d.,:]*\d|\w{2,}")


@dataclass(frozen=True, slots=True)
class Stated:
    """A requirement as someone stated it, with its status and the ids of what shows it."""

    statement: str
    status: str
    evidence: frozenset[str]


def match_requirements(people: Sequence[Stated], judge: Sequence[Stated]) -> list[tuple[Stated, Stated]]:
    """Pair the requirements of a person with those of the judge, each at most once, so that most is in common.

    What is left out of either list has no counterpart that is similar enough: it was not compared.
    """
    if not people or not judge:
        return []
    scores = np.array([[similarity(one, other) for other in judge] for one in people])
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return [
        (people[row], judge[column])
        for row, column in zip(rows, columns, strict=True)
        if scores[row, column] >= MIN_SIMILARITY
    ]


def similarity(one: Stated, other: Stated) -> float:
    """Return how much two requirements have in common, 0–1: of words and of evidence, the mean of both shares.

    Statements with the same words are the same, whatever they cite.
    """
    words = _overlap(_words(one.statement), _words(other.statement))
    return 1.0 if words == 1 else (words + _overlap(one.evidence, other.evidence)) / 2


def _words(statement: str) -> frozenset[str]:
    return frozenset(word.lower().rstrip("s") for word in _WORD.findall(statement))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of both sets together that is common (Dice)."""
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0
