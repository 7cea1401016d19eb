"""The memory of redacted documents: never another version, never more than its room."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.serve.recent_documents import RecentDocuments

THEN = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 60))))
def test_what_is_kept_is_what_was_put_last(steps: list[tuple[int, int, int]]) -> None:
    kept, last = RecentDocuments(100), dict[str, tuple[datetime, bytes]]()
    for run, version, size in steps:
        moment, document = THEN + timedelta(seconds=version), bytes([run]) * size
        kept.put(f"run-{run}", moment, document)
        last[f"run-{run}"] = moment, document
        found = {key: kept.get(key, at) for key, (at, _) in last.items()}
        assert all(value in (None, last[key][1]) for key, value in found.items())
        assert sum(len(value or b"") for value in found.values()) <= 100
        assert size > 25 or found[f"run-{run}"] == document


def test_changed_run_is_not_kept() -> None:
    kept = RecentDocuments()
    kept.put("run-1", THEN, b"{}")
    assert kept.get("run-1", THEN + timedelta(seconds=1)) is None
