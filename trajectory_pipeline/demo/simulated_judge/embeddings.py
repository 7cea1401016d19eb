"""Embeddings without a model: words hashed into a fixed number of features, as unit vectors.

Belongs here: how a text becomes a vector. Does not belong here: the shape of the API's answer (``protocol``).
Texts that share words lie close to each other, which is all that retrieval needs to be shown and tested.
"""

import math
import re
from array import array
from base64 import b64encode
from collections import Counter
from hashlib import blake2b

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 3072

_WORD = re.compile(r"\w+")


def embed(text: str, dimensions: int = DEFAULT_DIMENSIONS) -> list[float]:
    """Give the unit vector of a text: one signed feature for each word, damped by how often the word comes."""
    # A text without a word still needs a vector of length one.
    words = Counter(_WORD.findall(text.lower())) or Counter([text])
    vector = [0.0] * dimensions
    for word, count in words.items():
        digest = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        vector[(digest >> 1) % dimensions] += (1.0 if digest & 1 else -1.0) * (1.0 + math.log(count))
    length = math.sqrt(math.fsum(value * value for value in vector))
    if length == 0.0:  # two words may cancel each other out
        vector[0], length = 1.0, 1.0
    return [value / length for value in vector]


def as_base64(vector: list[float]) -> str:
    """Write a vector as little-endian 32-bit floats in base64, as the OpenAI client asks for by default."""
    packed = array("f", vector)
    if packed.itemsize != 4:
        raise AssertionError("this platform has no 32-bit floats")
    if _BIG_ENDIAN:
        packed.byteswap()
    return b64encode(packed.tobytes()).decode("ascii")


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"
