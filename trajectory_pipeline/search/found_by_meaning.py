"""Says where a search found nothing by words: what is nearest by meaning may be far."""

from collections.abc import Sequence
from typing import Protocol


class Ranked(Protocol):
    """A run that was found."""

    @property
    def words_rank(self) -> int | None:
        """Its place among the texts with the query's words; None where it has none of them."""

    @property
    def similarity(self) -> float | None:
        """Cosine similarity to the query."""


def found_by_meaning_alone(hits: Sequence[Ranked], mode: str) -> str | None:
    """Return a sentence where words were searched, and no run that was found has one of them; else None."""
    if mode != "hybrid" or not hits or any(hit.words_rank is not None for hit in hits):
        return None
    nearest = max((hit.similarity for hit in hits if hit.similarity is not None), default=0.0)
    return (
        "No run that was found has a word of the query: these are the nearest by meaning, with a similarity of at most"
        f" {nearest:.2f} (1 is the same), and may have nothing to do with it."
    )
