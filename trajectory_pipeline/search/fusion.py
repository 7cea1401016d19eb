"""Fusion of ranked lists by reciprocal rank (Cormack, Clarke and Büttcher, SIGIR 2009)."""

from collections.abc import Mapping, Sequence

RANK_CONSTANT = 60
"""The ``k`` of the paper: how little the first places of a list count above the next ones."""


def fuse_ranks(lists: Sequence[Mapping[str, int]]) -> list[tuple[str, float]]:
    """Return what is in any of the lists with its score, best first; ties by id.

    The score is the sum of 1 / (60 + rank) over the lists that it is in. Only ranks count, so that scores of different
    scales need no common one.

    Args:
        lists: id → rank, from 1.
    """
    scores: dict[str, float] = {}
    for ranks in lists:
        for one, rank in ranks.items():
            scores[one] = scores.get(one, 0.0) + 1 / (RANK_CONSTANT + rank)
    return sorted(scores.items(), key=lambda scored: (-scored[1], scored[0]))
