"""Runs that say almost the same: found by MinHash of their sequences of words.

Similarity is the Jaccard index of two runs' sequences of five words, estimated to about ±0.05. System prompts and tool
definitions do not count, which all runs of an agent share. Runs with different outcomes are no duplicates: what they
differ in is what there is to learn.
"""

import re
from typing import Any

from datasketch import MinHash, MinHashLSH

from trajectory_pipeline.exports.chat import said_in
from trajectory_pipeline.exports.source import ExportRun

_WORDS_IN_SEQUENCE = 5
_PERMUTATIONS, _SCHEME = 128, "affine32"
_WORD = re.compile(r"\w+")

Signature = Any
"""What is kept of a run to compare it: an array of 128 numbers."""


def signature_of(run: ExportRun) -> Signature:
    """Return the signature of what a run says."""
    words = [word for text in said_in(run) for word in _WORD.findall(text.lower())]
    last = max(1, len(words) - _WORDS_IN_SEQUENCE + 1)
    sequences = {" ".join(words[at : at + _WORDS_IN_SEQUENCE]).encode() for at in range(last)}
    minhash = MinHash(_PERMUTATIONS, scheme=_SCHEME)
    minhash.update_batch(sorted(sequences))
    return minhash.hashvalues


class NearDuplicates:
    """The runs that were kept so far, by what they say."""

    def __init__(self, threshold: float) -> None:
        """Find runs that are at least so similar, from 0 to 1."""
        self._threshold = threshold
        self._by_outcome: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}

    def find(self, run_id: str, outcome: str, signature: Signature) -> tuple[str, float] | None:
        """Return the kept run that a run is most like, with the similarity; where there is none, the run is kept."""
        minhash = MinHash(_PERMUTATIONS, hashvalues=signature, scheme=_SCHEME)
        index = self._by_outcome.setdefault(outcome, MinHashLSH(self._threshold, _PERMUTATIONS))
        similar = [(minhash.jaccard(self._kept[other]), other) for other in index.query(minhash)]
        similar = [one for one in similar if one[0] >= self._threshold]
        if similar:
            similarity, other = max(similar, key=lambda one: (one[0], one[1]))
            return other, similarity
        index.insert(run_id, minhash)
        self._kept[run_id] = minhash
        return None
