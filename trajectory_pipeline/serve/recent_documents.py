"""Redacted documents that were asked for lately: redacting takes longer than all the rest of an answer."""

import threading
from collections import OrderedDict
from datetime import datetime

MOST_BYTES = 32_000_000


class RecentDocuments:
    """Documents by run and the time when the run last changed; those asked for longest ago are dropped first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._documents: OrderedDict[str, tuple[datetime, bytes]] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def get(self, run_id: str, updated_at: datetime) -> bytes | None:
        """Return a document, if the run has not changed since."""
        with self._guard:
            found = self._documents.get(run_id)
            if found is None or found[0] != updated_at:
                return None
            self._documents.move_to_end(run_id)
            return found[1]

    def put(self, run_id: str, updated_at: datetime, document: bytes) -> None:
        """Keep a document, unless it alone would take a quarter of the room."""
        with self._guard:
            self._bytes -= len(self._documents.pop(run_id, (None, b""))[1])
            if len(document) > self._most_bytes // 4:
                return
            self._documents[run_id] = updated_at, document
            self._bytes += len(document)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._documents.popitem(last=False)[1][1])
