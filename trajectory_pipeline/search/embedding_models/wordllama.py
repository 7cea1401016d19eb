"""WordLlama: a small English model whose weights are in its wheel; it needs no key, no network and no graphics card.

An embedding is the mean of the vectors of the text's tokens (256 numbers), so that the order of words does not count.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector

NAME = "wordllama"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TEXTS_AT_ONCE = 256


class WordLlamaModel:
    """The model, loaded; see ``load_wordllama``."""

    def __init__(self, weights: np.ndarray[Any, np.dtype[np.float16]], tokenizer: Any) -> None:
        self._weights = weights
        self._tokenizer = tokenizer

    @property
    def dimensions(self) -> int:
        """Numbers of an embedding."""
        return int(self._weights.shape[1])

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Return the embedding of each text, of zeros where it has no token.

        What the package itself computes, but for a text without tokens, which it makes NaN; and without filling up
        short texts to the length of the longest, which takes most of the time.
        """
        found: list[Vector] = []
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            encoded = self._tokenizer.encode_batch_fast(
                list(texts[first : first + _TEXTS_AT_ONCE]), add_special_tokens=False
            )
            found += [self._mean(one.ids) for one in encoded]
        return found

    def _mean(self, tokens: Sequence[int]) -> Vector:
        if not tokens:
            return np.zeros(self.dimensions, dtype=np.float32)
        rows = np.minimum(np.asarray(tokens), len(self._weights) - 1)
        return np.asarray(self._weights[rows].mean(axis=0, dtype=np.float32))


@cache
def wordllama_model() -> EmbeddingModel:
    """Return which model it is, without loading it.

    Raises:
        ImportError: the package is not installed.
        OSError: its files are not there.
    """
    return EmbeddingModel(NAME, weights_digest=hashlib.sha256((_folder() / _WEIGHTS).read_bytes()).hexdigest())


def _folder() -> Path:
    spec = find_spec(NAME)
    if spec is None or spec.origin is None:
        raise ImportError("the package wordllama is not installed")
    return Path(spec.origin).parent


@contextmanager
def _untouched_logging() -> Iterator[None]:
    """Undo what importing the package does to the root logger: every library's lines would go to stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@cache
def load_wordllama() -> WordLlamaModel:
    """Load the model from its package, once a process; nothing is downloaded.

    Raises:
        ImportError: the package is not installed.
        OSError: its files are not there.
    """
    with _untouched_logging():
        import wordllama

    folder = _folder()
    # With its default folder, the loader would look for the tokenizer in the home directory, and download it.
    loaded = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    loaded.tokenizer.no_padding()
    # As in its file: the package makes numbers of twice the size of them, and no others.
    return WordLlamaModel(loaded.embedding.astype(np.float16), loaded.tokenizer)
