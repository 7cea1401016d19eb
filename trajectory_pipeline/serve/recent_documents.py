"""Redacted documents that were asked for lately: redacting takes longer than all the rest of an answer."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

MOST_BYTES = 8_000_000
"""In each worker."""


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """A redacted document as JSON text, and the time when its run last changed."""

    updated_at: datetime
    document: bytes


class RecentDocuments:
    """Documents by run; those asked for longest ago are dropped first."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._documents: OrderedDict[str, KeptDocument] = OrderedDict()
        self._bytes = 0
        self._guard = threading.Lock()

    def get(self, run_id: str) -> KeptDocument | None:
        """Return the document of a run as it was kept: the run may have changed since."""
        with self._guard:
            found = self._documents.get(run_id)
            if found is not None:
                self._documents.move_to_end(run_id)
            return found

    def put(self, run_id: str, kept: KeptDocument) -> None:
        """Keep a document, unless it alone would take a quarter of the room."""
        with self._guard:
            before = self._documents.pop(run_id, None)
            self._bytes -= len(before.document) if before else 0
            if len(kept.document) > self._most_bytes // 4:
                return
            self._documents[run_id] = kept
            self._bytes += len(kept.document)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._documents.popitem(last=False)[1].document)
