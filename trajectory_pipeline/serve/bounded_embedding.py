"""Embeds what is searched for, and keeps a model that does not answer from taking all threads of the service."""

import threading
import time
from collections.abc import Callable

from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.pipeline.query_embedding import QueryEmbedding

MOST_AT_ONCE = 20
"""Searches that wait for the model: half of the threads that answer requests."""
_TURN_SECONDS = 0.5
_SLOW_SECONDS = 1.0
"""A failure that took longer is no answer: the next one would take as long."""
BUSY = "The embedding model answers too slowly for so many searches."


class BoundedEmbedding:
    """Asks for embeddings, so many at once; after a slow failure one at a time, until there is an answer again."""

    def __init__(self, embed: Callable[[str], QueryEmbedding], most: int = MOST_AT_ONCE) -> None:
        self._embed = embed
        self._places = threading.BoundedSemaphore(most)
        self._trial = threading.BoundedSemaphore(1)
        self._is_down = False

    def __call__(self, text: str) -> QueryEmbedding:
        """Return the embedding of a query, or why there is none.

        Raises:
            PipelineError: the model cannot be asked, or gives no embedding.
        """
        is_down = self._is_down
        place = self._trial if is_down else self._places
        if not place.acquire(timeout=0 if is_down else _TURN_SECONDS):
            return QueryEmbedding(None, BUSY)
        since = time.monotonic()
        try:
            found = self._embed(text)
            self._is_down = False
        except PipelineError:
            self._is_down = time.monotonic() - since > _SLOW_SECONDS
            raise
        finally:
            place.release()
        return found
