"""Runs that say almost the same: found by MinHash of their sequences of words.

Similarity is the Jaccard index of two runs' sequences of five words, estimated to about ±0.05. System prompts and tool
definitions do not count, which all runs of an agent share. Runs with different outcomes are no duplicates: what they
differ in is what there is to learn.
"""

import base64
import hashlib
import re
from functools import cache
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH

from trajectory_pipeline.exports.source import ExportRun
from trajectory_pipeline.exports.text_digest import message_texts

_WORDS_IN_SEQUENCE = 5
_PERMUTATIONS, _SCHEME = 128, "affine32"
SIGNATURE_NUMBER = np.dtype("<u4")
"""Type of the numbers of a signature."""
_WORD = re.compile(r"\w+")

Signature = Any
"""What is kept of a run to compare it: an array of 128 numbers."""


def signature_of(run: ExportRun) -> Signature:
    """Return the signature of what a run says."""
    words = [word for text in message_texts(run) for word in _WORD.findall(text.lower())]
    last = max(1, len(words) - _WORDS_IN_SEQUENCE + 1)
    sequences = {" ".join(words[at : at + _WORDS_IN_SEQUENCE]).encode() for at in range(last)}
    minhash = MinHash(_PERMUTATIONS, scheme=_SCHEME)
    minhash.update_batch(sorted(sequences))
    return minhash.hashvalues.astype(SIGNATURE_NUMBER)


def signature_text(signature: Signature) -> str:
    """Return a signature as text, in base64."""
    return base64.b64encode(signature.tobytes()).decode()


def read_signature(text: str) -> Signature:
    """Return the signature that a text stands for."""
    return np.frombuffer(base64.b64decode(text), SIGNATURE_NUMBER)


def similarity(one: Signature, other: Signature) -> float:
    """Return the estimated Jaccard index of two runs, 0–1, by their signatures."""
    return float(np.count_nonzero(one == other)) / _PERMUTATIONS


def bands_of(signature: Signature, outcome: str, threshold: float) -> list[int]:
    """Return whole numbers, of 64 bits, of which runs that are so similar, with one outcome, most likely share one."""
    bands, rows = _parameters(threshold)
    parts = (
        f"{outcome} {band} ".encode() + signature[band * rows : (band + 1) * rows].tobytes() for band in range(bands)
    )
    return [int.from_bytes(hashlib.sha256(part).digest()[:8], signed=True) for part in parts]


@cache
def _parameters(threshold: float) -> tuple[int, int]:
    """Return into how many bands a signature is divided, and how many numbers each has: as the library divides it."""
    try:
        index = MinHashLSH(threshold, _PERMUTATIONS)
    except ValueError:
        # So near to 1 that it would take one band, which it refuses.
        return 2, _PERMUTATIONS // 2
    return index.b, index.r
