"""The memory of redacted documents: never another version, never more than its room."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.serve.recent_documents import KeptDocument, RecentDocuments

THEN = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 60))))
def test_what_is_kept_is_what_was_put_last(steps: list[tuple[int, int, int]]) -> None:
    kept, last = RecentDocuments(100), dict[str, KeptDocument]()
    for run, version, size in steps:
        moment, document = THEN + timedelta(seconds=version), bytes([run]) * size
        last[f"run-{run}"] = KeptDocument(moment, document)
        kept.put(f"run-{run}", last[f"run-{run}"])
        found = {key: kept.get(key) for key in last}
        assert all(value in (None, last[key]) for key, value in found.items())
        assert sum(len(value.document) for value in found.values() if value) <= 100
        assert size > 25 or found[f"run-{run}"] == last[f"run-{run}"]
