"""Faults of an object storage, on the wire: it is too busy, the credentials end, its listings lag behind.

An HTTP proxy before moto's server answers as S3 does. What fails is one sentence, loses nothing, and heals by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.completeness import CompletenessScope, check_completeness
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline_tests.crashes.worker import Stored, mark
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.object_storage.http_proxy import Proxy, Reply, Request, s3_error
from trajectory_pipeline_tests.object_storage.servers import ObjectServer, moto, reached, s3_variables

pytestmark = [pytest.mark.process, pytest.mark.heavy]

BUSY = max(sample_partitions().items(), key=lambda item: item[1])[0]
SLOW_DOWN = s3_error(503, "SlowDown", "Please reduce your request rate.")
EXPIRED = s3_error(400, "ExpiredToken", "The provided token has expired.")
SECRET = s3_variables("")["AWS_SECRET_ACCESS_KEY"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def proxy(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    # Of the client under s3fs, which tries five times more by itself: else each failure takes most of a minute.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with closing(Proxy(server.url)) as proxy, reached(server, proxy.url):
        yield proxy


@pytest.fixture
def stored(server: ObjectServer, proxy: Proxy, letta_database: str, trajectory_database: str, tmp_path: Path) -> Stored:
    return Stored(letta_database, trajectory_database, tmp_path, uri=f"{server.storage}/{tmp_path.name}")


def state(stored: Stored) -> dict[str, object]:
    """What is in both sinks."""
    tables = ("partitions", "trajectories", "quarantine", "invalidations")
    rows = {name: stored.ask(f"SELECT * FROM trajectory.{name} ORDER BY 1, 2") for name in tables}
    return {**rows, **{table.name: stored.parquet(table, BUSY) for table in (TERMINAL_RUNS, TRAJECTORIES)}}


def assert_whole(stored: Stored, version: str) -> None:
    assert reconcile_partition(BUSY, stored.storage).differences == ()
    assert {row["project_id"] for row in stored.parquet(TRAJECTORIES, BUSY)} == {version}
    assert stored.ask("SELECT * FROM trajectory.invalidations") == []


def test_slow_down_is_waited_for(stored: Stored, proxy: Proxy) -> None:
    asked: dict[Request, int] = {}

    def busy(request: Request) -> Reply | None:
        asked[request] = asked.get(request, 0) + 1
        return SLOW_DOWN if asked[request] <= 2 else None

    proxy.fault = busy
    mark(stored, "slow", [BUSY])
    stored.capture(BUSY)
    assert {request.method for request in asked} == {"GET", "PUT"}
    proxy.fault = lambda request: None
    assert_whole(stored, "slow")


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    ("answer", "words"), [(SLOW_DOWN, "Please reduce your request rate"), (EXPIRED, "The provided token has expired")]
)
def test_permanent_error_is_one_sentence_and_changes_nothing(
    stored: Stored, proxy: Proxy, method: str, answer: Reply, words: str
) -> None:
    mark(stored, "before", [BUSY])
    stored.capture(BUSY)
    mark(stored, "after", [BUSY])
    before = state(stored)
    for asset, work in ((TERMINAL_RUNS, stored.read), (TRAJECTORIES, stored.convert)):

        def refuses(request: Request, asset: str = asset.name) -> Reply | None:
            return answer if request.method == method and f"/{asset}/" in request.path else None

        proxy.fault = refuses
        with pytest.raises(SinkError, match=words) as refusal:
            work(BUSY)
        proxy.fault = lambda request: None
        assert "\n" not in str(refusal.value)
        assert "TRAJECTORY_STORAGE_URI" in str(refusal.value)
        assert SECRET not in str(refusal.value)
        after = state(stored)
        if asset is TERMINAL_RUNS:
            # The note that the file may differ stays, and makes the partition be materialized again.
            assert {**after, "invalidations": []} == before
            stored.read(BUSY)
            before = state(stored)
        else:
            assert {**after, "invalidations": []} == before
    stored.convert(BUSY)
    assert_whole(stored, "after")


def test_lagging_listing_hides_nothing_from_capture_conversion_and_check(
    stored: Stored, proxy: Proxy, remembered_listings: Callable[[], None]
) -> None:
    remembered_listings()
    scope = CompletenessScope(BUSY, stuck_after=timedelta(hours=24))
    # The first listings are made while nothing is there.
    assert check_completeness(LettaSource(stored.letta_url), stored.storage, scope).differences
    for version in ("one", "two"):
        mark(stored, version, [BUSY])
        stored.capture(BUSY)
        assert_whole(stored, version)
    differences = check_completeness(LettaSource(stored.letta_url), stored.storage, scope).differences
    assert [text for text in differences if text.startswith(partition_key(BUSY))] == []


@pytest.fixture
def remembered_listings(stored: Stored, proxy: Proxy) -> Callable[[], None]:
    """A function that makes each listing what it was when it was first asked for."""
    first: dict[str, Reply] = {}

    def old(request: Request, reply: Reply) -> Reply:
        return first.setdefault(request.path, reply) if request.is_listing else reply

    def begin() -> None:
        proxy.seen = old

    return begin
