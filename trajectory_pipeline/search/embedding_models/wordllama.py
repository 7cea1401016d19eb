"""WordLlama: a small English model whose weights are in its wheel; it needs no key, no network and no graphics card.

An embedding is the mean of the vectors of the text's tokens (256 numbers), so that the order of words does not count.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector

NAME = "wordllama"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
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


@cache
def load_wordllama() -> WordLlamaModel:
    """Load the model from its package's files, once a process; nothing is downloaded.

    The package itself is not imported: it would make numbers of twice the size of these, and set up the root logger.
    Weights are read from the file where they are used, so that processes share them.

    Raises:
        ImportError: the package is not installed.
        OSError: its files are not there.
        ValueError: they are of another form than expected.
    """
    from tokenizers import Tokenizer

    folder = _folder()
    tokenizer = Tokenizer.from_str((folder / _TOKENIZER).read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return WordLlamaModel(_weights(folder / _WEIGHTS), tokenizer)


def _weights(path: Path) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Return a row of 16-bit floats for each token.

    Source: the format of safetensors, https://huggingface.co/docs/safetensors: the length of the header in eight bytes,
    the header as JSON, the numbers.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    (one,) = (value for name, value in header.items() if name != "__metadata__")
    if one["dtype"] != "F16":
        raise ValueError(f"The weights in {path} are of type {one['dtype']}; this version reads F16.")
    at, shape = 8 + length + one["data_offsets"][0], tuple(one["shape"])
    return np.memmap(path, dtype="<f2", mode="r", offset=at, shape=shape)
