"""What search counted within the last minute: how frequent words are, and how many runs an organization has.

Both change slowly, and counting them anew for each search takes a good part of it.
"""

import threading
import time
from collections.abc import Sequence

import psycopg

from trajectory_pipeline.storage.postgres.search_filters import SearchFilters
from trajectory_pipeline.storage.postgres.service_access import Tenants
from trajectory_pipeline.storage.postgres.word_frequencies import SAMPLE, Frequency, document_frequencies

_SECONDS = 60.0
_MOST_REMEMBERED = 20_000


class RecentCounts:
    """Counts of the last minute, for each kind of client apart."""

    def __init__(self) -> None:
        self._frequencies: dict[tuple[Tenants | None, str], tuple[float, Frequency]] = {}
        self._runs: dict[SearchFilters, tuple[float, int]] = {}
        self._guard = threading.Lock()

    def frequencies(
        self, connection: psycopg.Connection, tenants: Tenants | None, terms: Sequence[str]
    ) -> dict[str, Frequency]:
        """Return what ``document_frequencies`` does; few texts are counted anew each time.

        Args:
            connection: which sees the runs of these tenants.
            tenants: None where it sees all.
            terms: words and phrases.
        """
        now = time.monotonic()
        with self._guard:
            known = {term: self._frequencies.get((tenants, term)) for term in terms}
        frequencies = {term: found[1] for term, found in known.items() if found and now - found[0] < _SECONDS}
        if missing := [term for term in terms if term not in frequencies]:
            counted = document_frequencies(connection, missing, tenants)
            frequencies |= counted
            with self._guard:
                if len(self._frequencies) > _MOST_REMEMBERED:
                    self._frequencies.clear()
                self._frequencies |= {
                    (tenants, term): (now, one) for term, one in counted.items() if one.sampled == SAMPLE
                }
        return frequencies

    def runs(self, filters: SearchFilters) -> int | None:
        """Return how many runs pass filters, as it was counted for the same client; None where it was not."""
        with self._guard:
            found = self._runs.get(filters)
        return found[1] if found and time.monotonic() - found[0] < _SECONDS else None

    def remember_runs(self, filters: SearchFilters, runs: int) -> None:
        """Remember how many runs pass filters, of which the client's tenants are a part."""
        with self._guard:
            if len(self._runs) > _MOST_REMEMBERED:
                self._runs.clear()
            self._runs[filters] = time.monotonic(), runs
