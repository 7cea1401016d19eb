"""The embeddings endpoint: a vector of hashed words, so that texts with common words lie close to each other."""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.demo.simulated_judge.faults import ChosenFault
from trajectory_pipeline.demo.simulated_judge.protocol import ApiError, read_json, read_model, tokens_of

DIMENSIONS = 64
MAX_TEXTS = 2048
MAX_TOKENS = 8192
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request that has been checked."""

    model: str
    texts: list[str]
    dimensions: int
    fault: ChosenFault | None

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(tokens_of, self.texts))


def read_embedding_request(body: bytes) -> EmbeddingRequest:
    """Read and check a request; raises ApiError as the API would."""
    request = read_json(body)
    model, fault = read_model(request)
    given = request.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ApiError(400, "'$.input' is invalid.", param="input")
    if len(texts) > MAX_TEXTS:
        raise ApiError(400, f"'input' has more than {MAX_TEXTS} items.", param="input")
    for text in texts:
        if (tokens := tokens_of(text)) > MAX_TOKENS:
            message = (
                f"This model's maximum context length is {MAX_TOKENS} tokens, however you requested {tokens} tokens."
            )
            raise ApiError(400, message, param="input", code="context_length_exceeded")
    dimensions = request.get("dimensions", DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= DIMENSIONS:
        raise ApiError(400, f"'dimensions' is a whole number from 1 to {DIMENSIONS}.", param="dimensions")
    return EmbeddingRequest(model, texts, dimensions, fault)


def embed(asked: EmbeddingRequest, chosen: ChosenFault | None) -> dict[str, Any]:
    """Return the body of the answer, damaged as a fault asks for."""
    vectors = [_vector(text, asked.dimensions) for text in asked.texts]
    name = chosen.name if chosen is not None else None
    if name == "embedding_missing":
        vectors.pop()
    elif name == "embedding_wrong_size":
        vectors = [vector[:-1] if len(vector) > 1 else [*vector, 0.5] for vector in vectors]
    elif name == "embedding_nan":
        vectors[0] = [math.nan, *vectors[0][1:]]
    elif name == "embedding_zero":
        vectors[0] = [0.0] * len(vectors[0])
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    if name == "embedding_text":
        data[0]["embedding"] = "AAAA"
    return {
        "object": "list",
        "data": data[::-1],  # the index decides, not the place
        "model": asked.model,
        "usage": {"prompt_tokens": asked.tokens, "total_tokens": asked.tokens},
    }


def _vector(text: str, dimensions: int) -> list[float]:
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()) or [text]:
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        vector[int.from_bytes(digest[:4]) % dimensions] += 1.0
    length = math.sqrt(sum(number * number for number in vector))
    return [number / length for number in vector]
