"""Models that turn a text into an embedding, and what is asked of any embedding before it is stored."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_DIMENSIONS = 16_000
"""That Postgres' ``halfvec`` holds."""


@dataclass(frozen=True)
class EmbeddingModel:
    """A model: embeddings of two of them are never compared with each other.

    Attributes:
        name: as its provider or package names it.
        base_url: endpoint, without credentials; None for a model that runs in this process.
        weights_digest: SHA-256 (hex) of its weights; None where the endpoint does not tell.
        asked_dimensions: numbers of an embedding that are asked for; None for as many as it makes.
    """

    name: str
    base_url: str | None = None
    weights_digest: str | None = None
    asked_dimensions: int | None = None

    @property
    def model_id(self) -> str:
        """The name, and a digest of all that defines it."""
        definition = json.dumps([self.name, self.base_url, self.weights_digest, self.asked_dimensions])
        return f"{self.name}@{hashlib.sha256(definition.encode()).hexdigest()[:12]}"


Vector = np.ndarray[Any, np.dtype[np.float32]]


def unit_vector(numbers: Sequence[float] | Vector) -> Vector | str:
    """Return an embedding scaled to length 1, or what is wrong with it.

    Only directions are compared; and scaled, no number is beyond what half a precision holds.
    """
    try:
        vector = np.asarray(numbers, dtype=np.float64)
    except OverflowError:
        # JSON sets no limit to an integer.
        vector = np.array([np.inf])
    if not np.isfinite(vector).all():
        return "it has a number that is not finite"
    largest = float(np.abs(vector).max(initial=0))
    if largest == 0:
        return "all its numbers are 0, so that it has no direction"
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)
