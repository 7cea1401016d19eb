"""Splits of a dataset: runs that belong together are never on both sides."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
_DIGITS = 2**64


@dataclass(frozen=True)
class SplitShares:
    """Shares of the groups of runs, which add up to 1."""

    train: float
    validation: float
    test: float

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            ValueError: one is negative, or they do not add up to 1.
        """
        shares = (self.train, self.validation, self.test)
        # Put so that a share which is not a number is refused as well.
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9):
            raise ValueError("shares of splits must be at least 0 and add up to 1")


def groups_of(keys: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return the group of each run: runs that share a key, directly or through others, are in the same one.

    Args:
        keys: by run id, what it may share with others: its chain, conversation, task family, text.

    Returns:
        By run id, the smallest key of its group, which names it.
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    first_keys = {}
    for run_id, own in keys.items():
        first, *others = sorted({f"run {run_id}", *own})
        first_keys[run_id] = first
        for other in others:
            one, two = sorted((root(first), root(other)))
            parents[two] = one
    return {run_id: root(first) for run_id, first in first_keys.items()}


def split_of(group: str, shares: SplitShares, seed: int) -> str:
    """Return the split of a group: the same for the same group, shares and seed, whatever other groups there are."""
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / _DIGITS
    if place < shares.train:
        return "train"
    return "validation" if place < shares.train + shares.validation else "test"
