"""Recurring failures: texts about failures put into groups whose ids stay, and a test for one that is new or growing.

Clustering is by leaders. A text joins the oldest group whose first text is similar to it; where there is none, it
founds one, whose id is a digest of that text. Groups are never merged, split or renumbered, and similarity does not
depend on other texts (there is no inverse document frequency), so that what joined a group once joins it always.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, HashingVectorizer

from trajectory_pipeline.schema.enums import FailureModeKind

SIMILARITY = {FailureModeKind.TOOL_ERROR: 0.7, FailureModeKind.LESSON: 0.25}
"""Smallest cosine similarity to a group's first text. Errors are written by programs, lessons in free words."""
ALPHA = 0.001
"""Probability of a false alarm in one look at all groups; benchmarks/failure_modes.py measures those of a year."""
MIN_RUNS = 50
"""Fewest runs of the earlier weeks that a growth is measured against."""
MIN_RECENT = 3
"""Fewest runs of the last week in which a group counts as recurring."""

_PORTION = 500
_ROUNDING = 1e-9
_VECTORIZER = HashingVectorizer(
    analyzer="word",
    ngram_range=(1, 2),
    token_pattern=r"\w+",  # noqa: S106 - no password
    stop_words=[*ENGLISH_STOP_WORDS, "number"],
    alternate_sign=False,
)
_MASKS = (
    (re.compile(r"\b[a-z_]+-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I), "ID"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I), "ID"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+"), "ADDRESS"),
    (re.compile(r"\bhttps?://\S+"), "URL"),
    (re.compile(r"(?<![\w.])/(?:[\w.-]+/)+[\w.-]*"), "PATH"),
    (re.compile(r"(?<!\w)'[^'\n]*'(?!\w)|\"[^\"\n]*\""), "QUOTED"),
    (re.compile(r"\b0x[0-9a-f]+\b|\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b", re.I), "ID"),
    (re.compile(r"\b[A-Z]{1,5}-?\d+\b|\d+(?:[.,:]\d+)*"), "NUMBER"),
)
_EXECUTING = re.compile(r"^Error executing function \S+: (?=\S)")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Timeout)\b")


@dataclass(frozen=True, slots=True)
class FailureText:
    """One text about a failure of a run, redacted.

    Attributes:
        run_id: the run.
        kind: where it is from.
        text: a tool's name and its error, or a lesson.
    """

    run_id: str
    kind: FailureModeKind
    text: str

    @property
    def digest(self) -> str:
        """What texts that differ only in names, numbers and quoted words have in common."""
        return hashlib.sha256(f"{self.kind}\n{mask(self.text)}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Leader:
    """The first text of a group, and the group's id."""

    mode_id: str
    kind: FailureModeKind
    text: str


@dataclass(frozen=True, slots=True)
class Growth:
    """Runs of a group in the last week and in the weeks before.

    Attributes:
        p_value: probability of so many in the last week if the share of runs had not grown; None where it is not
            tested, because there are too few runs.
        found: whether that is too small for chance, with all groups that were looked at.
    """

    mode_id: str
    recent: int
    earlier: int
    p_value: float | None
    found: bool

    @property
    def new(self) -> bool:
        """Whether there were none in the weeks before."""
        return not self.earlier


def mask(text: str) -> str:
    """Return a text with placeholders for what differs from one occurrence to the next: ids, numbers, quoted words."""
    for pattern, name in _MASKS:
        text = pattern.sub(name, text)
    return " ".join(text.split()).lower()


def error_line(returned: str) -> str:
    """Return the line of a tool's return that says what went wrong: the exception of a traceback, or the first line."""
    text = returned
    try:
        envelope = json.loads(returned)
    except (ValueError, RecursionError):
        envelope = None
    if isinstance(envelope, dict) and isinstance(envelope.get("message"), str):
        text = envelope["message"]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    # Letta's own words before the exception name the tool, which is known.
    return _EXECUTING.sub("", raised[-1] if raised else lines[0] if lines else "")


def assign_modes(
    texts: Iterable[FailureText], leaders: Sequence[Leader], known: Mapping[str, str]
) -> tuple[dict[str, str], list[Leader]]:
    """Put texts into groups.

    Args:
        texts: in the order in which they may found groups.
        leaders: of the groups that there are, oldest first.
        known: group of each text that has one, by ``FailureText.digest``.

    Returns:
        The group of each text by digest, those of ``known`` unchanged; and the leaders of the groups that are new.
    """
    found: dict[str, str] = {}
    waiting: dict[FailureModeKind, dict[str, FailureText]] = {kind: {} for kind in SIMILARITY}
    for text in texts:
        digest = text.digest
        if digest in known:
            found[digest] = known[digest]
        else:
            waiting[text.kind].setdefault(digest, text)
    new: list[Leader] = []
    for kind, of_kind in waiting.items():
        held = [leader for leader in leaders if leader.kind is kind]
        unassigned = list(of_kind.items())
        for start in range(0, len(unassigned), _PORTION):
            portion = unassigned[start : start + _PORTION]
            founded = _assign(kind, portion, held, found)
            held += founded
            new += founded
    return found, new


def _assign(
    kind: FailureModeKind,
    portion: Sequence[tuple[str, FailureText]],
    leaders: Sequence[Leader],
    found: dict[str, str],
) -> list[Leader]:
    """Add the group of each text of a portion to ``found``; return the groups that are new."""
    vectors = _vectors([text.text for _, text in portion])
    to_leaders = (vectors @ _vectors([leader.text for leader in leaders]).T).toarray() if leaders else None
    to_others = (vectors @ vectors.T).toarray()
    founders: list[int] = []
    new: list[Leader] = []
    least = SIMILARITY[kind] - _ROUNDING
    for at, (digest, text) in enumerate(portion):
        similar: Sequence[int] = [] if to_leaders is None else np.flatnonzero(to_leaders[at] >= least).tolist()
        among_new = [place for place, founder in enumerate(founders) if to_others[at, founder] >= least]
        if similar:
            found[digest] = leaders[similar[0]].mode_id
        elif among_new:
            found[digest] = new[among_new[0]].mode_id
        else:
            founders.append(at)
            new.append(Leader(f"{kind}-{digest[:12]}", kind, text.text))
            found[digest] = new[-1].mode_id
    return new


def find_growth(counts: Mapping[str, tuple[int, int]], runs: tuple[int, int], alpha: float = ALPHA) -> list[Growth]:
    """Return for each group whether it is new or growing.

    The runs of a group in the last week are compared with those of both periods together by the exact conditional test
    of two Poisson rates, one-sided: without growth, they are binomial with the last week's share of all runs. The
    probability is compared with ``alpha`` divided by the number of groups with runs in the last week (Bonferroni).

    Args:
        counts: runs of each group in the last week, and in the weeks before.
        runs: all runs in the last week, and in the weeks before.
        alpha: probability of a false alarm in this look.
    """
    looked_at = sum(recent >= MIN_RECENT for recent, _ in counts.values())
    return [
        _growth(mode_id, recent, earlier, runs, alpha / max(1, looked_at))
        for mode_id, (recent, earlier) in sorted(counts.items())
    ]


def _growth(mode_id: str, recent: int, earlier: int, runs: tuple[int, int], alpha: float) -> Growth:
    if recent < MIN_RECENT or runs[1] < MIN_RUNS:
        return Growth(mode_id, recent, earlier, None, found=False)
    p_value = float(binom.sf(recent - 1, recent + earlier, runs[0] / sum(runs)))
    return Growth(mode_id, recent, earlier, p_value, found=p_value < alpha)


def _vectors(texts: Sequence[str]) -> Any:
    return _VECTORIZER.transform([mask(text) for text in texts])
