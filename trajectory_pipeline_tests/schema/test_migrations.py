"""Migrating creates the schema once, also twice or concurrently. A schema of another version is refused."""

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.script import ScriptDirectory

from trajectory_pipeline.errors import SinkError
from trajectory_pipeline.storage.postgres import migrate as migrate_module
from trajectory_pipeline.storage.postgres import schema_revision
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.migrations import versions
from trajectory_pipeline.storage.postgres.schema_revision import FOLDERS, head_revision, known_revisions

RELEASED = {
    "0001_initial.py": "3437c224e8eb6d45a8d50f1443596c7cc899c5f7cd2ffe0681dc3a1534e0b5cb",
    "0002_analyst_views.py": "e475b32c2c855d39528239014b83520346401be42e54456f05c8e4444b8f0726",
    "0003_sources.py": "698307b12b38e1787b64751686a98a0c8741669ded033194148c693888a981c7",
    "0004_repetitions.py": "4c184396c4987f7d792b55f2cb6e2d83a2a25d02c6ce4bbd7a867491614b95d5",
    "0005_labels.py": "826e88ee0053739711661eb9b328bcbb1c33b06ea3b975df9f45ce5dda6ead71",
    "0006_context.py": "d38edb9ef08257ccf1a4bade47f1f224360af6326bd8f5ef177feb89b5136b3c",
    "0007_votes.py": "a2efd0bf229e4b081945965225f615e45060afef878126ba3cf8b5f9f98a4b56",
    "0008_judge_batches.py": "f5557c618b86ddc85a3f2a02941c59d0063f50649acbd4d7557e91f536c5b097",
    "0009_tools.py": "30507821b43d15cef0b2869c8efbac10cda239d60ed94cccc4ad19d2ec6d9290",
    "0010_judge_quality.py": "cce8505a9bb3bc9b603e589659b51b08a843cdeb993bb4c5f5417d76b4dcf5f7",
    "0011_requirement_probabilities.py": "71d34669c828ebb7b3701450e1fc3bc304694086174fdbf81f56a366f6065941",
    "0012_quality.py": "c01d3ffdf16073d4988c7e7cbc58a6e4d6bfef7035b796087b46ad00b275aa97",
    "0013_search.py": "336a606aec5c37a9a71c0b55893a146ad048f061bf23ca7db8b5fd2aa05f1a02",
    "0014_task_families.py": "689dccc7541edd26bcd58bd74a1a9f5d24aaf1b290fa5bd65a7cf205d4ca0ba8",
    "0015_service.py": "6c63cfbf32870296937916f2bd0a587be198bd8aa05ca91a25d7ee3a6c9bcc53",
    "0017_extra_answers.py": "85af4d1506d71ef5ef839beebfef1f8e5af9fcb02ab2ea8e46ce293ecddb04c7",
    "0018_exports.py": "acd6b4600228c738f0a09b82249a1eb3780a88ee0c909e2e9073d8844dfd4cae",
    "0019_source_names.py": "597da630d1bd24f0f16a15f1e5f0cbd2b3a89640b8a2df30b6c1184a04a46564",
    "0020_search_speed.py": "f2ce0e1368a8a8c9e4cc5771b7f38628e3e946acaeaa2350a838692146b65484",
    "0021_export_near_duplicates.py": "e2f88686c1f8cd2341eff1332b8b28c5f8de4da7998f2a91b976d88bbd48fc66",
    "0022_run_versions.py": "5b87e649eee8226d1460d7a2101a5d244f7d44787499bff64eff7095cfc9f737",
    "0023_search_tenants.py": "7999f12cf8cd02724f7a49353d09c8f53ef0ec1e8a9b09daafe5445760d194ad",
    "0024_export_duplicates.py": "f3ab406c4cdc248a8fbab683d79b31846e21c1b6cc0637890ba2fb6ef12236d6",
}
"""Digest of every revision that was released, by file. Add to it; never change what is here."""


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def connect(url: str) -> None:
    with TrajectoryDatabase(url).connect():
        pass


def test_migrate_twice_changes_nothing(empty_database: str) -> None:
    assert migrate(empty_database) == (None, head_revision())
    execute(empty_database, "CREATE TABLE trajectory.mine (x int)")
    assert migrate(empty_database) == (head_revision(), head_revision())
    execute(empty_database, "SELECT x FROM trajectory.mine")


def test_migrate_in_four_threads_creates_the_schema_once(empty_database: str) -> None:
    barrier = threading.Barrier(4)
    results: list[tuple[str | None, str] | BaseException] = []

    def work() -> None:
        barrier.wait()
        try:
            results.append(migrate(empty_database))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=repr) == sorted(
        [(None, head_revision()), *[(head_revision(), head_revision())] * 3], key=repr
    )
    connect(empty_database)


def test_migrate_uses_an_existing_empty_schema(empty_database: str) -> None:
    execute(empty_database, "CREATE SCHEMA trajectory")
    migrate(empty_database)
    connect(empty_database)


def test_migrate_that_fails_changes_nothing(empty_database: str) -> None:
    execute(empty_database, "CREATE SCHEMA trajectory", "CREATE TABLE trajectory.verdicts (x int)")
    with pytest.raises(SinkError, match=r"Migrating failed in the database .*already exists"):
        migrate(empty_database)
    with psycopg.connect(empty_database) as connection:
        tables = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'trajectory'::regnamespace")
        assert tables.fetchall() == [("verdicts",)]


def test_known_revisions_are_those_of_the_migrations_in_order() -> None:
    script = ScriptDirectory.from_config(migrate_module._config())
    assert list(known_revisions()) == [one.revision for one in script.walk_revisions()][::-1]
    assert head_revision() == script.get_current_head()


def test_connect_without_the_schema_says_what_to_run(empty_database: str) -> None:
    with pytest.raises(SinkError, match=r"has no schema 'trajectory' yet: run `trajectory-pipeline migrate`\.$"):
        connect(empty_database)


def test_connect_to_an_older_schema_says_what_to_run(trajectory_database: str) -> None:
    execute(trajectory_database, "DELETE FROM trajectory.alembic_version")
    with pytest.raises(SinkError, match=rf"needs {head_revision()}: run `trajectory-pipeline migrate`\.$"):
        connect(trajectory_database)


def test_newer_schema_is_refused_and_not_changed(trajectory_database: str) -> None:
    execute(trajectory_database, "UPDATE trajectory.alembic_version SET version_num = '9999'")
    with pytest.raises(
        SinkError, match=r"is at revision 9999, .*a newer trajectory-pipeline made it: update this one\.$"
    ):
        connect(trajectory_database)
    with pytest.raises(
        SinkError,
        match=r"is at revision 9999, which this version does not know .*:"
        r" a newer trajectory-pipeline made it: update this one\.$",
    ):
        migrate(trajectory_database)


@pytest.mark.parametrize("revision", ["0001", "0011"])
def test_migrate_on_unreleased_schema_says_to_drop_it(trajectory_database: str, revision: str) -> None:
    execute(trajectory_database, f"UPDATE trajectory.alembic_version SET version_num = '{revision}'")
    advice = (
        r"an unreleased trajectory-pipeline made it, and it cannot be upgraded\. Save what you need of it, `DROP SCHEMA"
        r" trajectory CASCADE`, run `trajectory-pipeline migrate` and materialize again\.$"
    )
    with pytest.raises(SinkError, match=rf"is at revision {revision}, .*: {advice}"):
        connect(trajectory_database)
    with pytest.raises(SinkError, match=rf"is at revision {revision}, which this version does not know .*: {advice}"):
        migrate(trajectory_database)


@pytest.fixture
def newer_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A revision after the newest one, which alters a table that is always read."""
    (tmp_path / "9990.py").write_text(
        f"revision, down_revision = '9990', '{head_revision()}'\n"
        "from alembic import op\n"
        "def upgrade():\n"
        "    op.execute('ALTER TABLE trajectory.trajectories ADD COLUMN newer int')\n"
    )
    config = migrate_module._config()
    config.set_main_option("version_locations", f"{Path(versions.__path__[0])} {tmp_path}")
    config.set_main_option("path_separator", "space")
    with monkeypatch.context() as patched:
        patched.setattr(migrate_module, "_config", lambda: config)
        patched.setattr(migrate_module, "LOCK_TIMEOUT_SECONDS", 0.4)
        patched.setattr(schema_revision, "FOLDERS", [*FOLDERS, tmp_path])
        known_revisions.cache_clear()
        yield "9990"
    known_revisions.cache_clear()


def test_migrate_behind_a_lock_blocks_no_reader_for_long(trajectory_database: str, newer_revision: str) -> None:
    results: list[tuple[str | None, str]] = []
    waits: list[float] = []
    thread = threading.Thread(target=lambda: results.append(migrate(trajectory_database)))
    with psycopg.connect(trajectory_database) as reading, psycopg.connect(trajectory_database) as other:
        other.autocommit = True
        reading.execute("SELECT count(*) FROM trajectory.trajectories")  # its lock stays until the end
        thread.start()
        began = time.monotonic()
        while time.monotonic() < began + 4:
            before = time.monotonic()
            other.execute("SELECT count(*) FROM trajectory.trajectories")
            waits.append(time.monotonic() - before)
            time.sleep(0.01)
        assert results == []
    thread.join()
    assert 0.1 < max(waits) < 1.4
    assert [after for _, after in results] == [newer_revision]
    execute(trajectory_database, "SELECT newer FROM trajectory.trajectories")


@pytest.mark.parametrize("mode", ["ACCESS SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"])
def test_migrate_behind_a_lock_that_is_held_changes_nothing(
    trajectory_database: str, newer_revision: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(migrate_module, "RETRY_PAUSES_SECONDS", (0.1,))
    with psycopg.connect(trajectory_database) as holding:
        holding.execute(f"LOCK TABLE trajectory.trajectories IN {mode} MODE".encode())
        with pytest.raises(SinkError, match=r"changed nothing: other sessions kept a table .* locked\. Stop"):
            migrate(trajectory_database)
    assert migrate(trajectory_database)[1] == newer_revision


def test_comment_behind_a_lock_that_is_held_names_its_holder(
    trajectory_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate_module, "LOCK_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(migrate_module, "RETRY_PAUSES_SECONDS", ())
    execute(trajectory_database, "COMMENT ON TABLE trajectory.trajectories IS 'old'")
    with psycopg.connect(trajectory_database) as holding:
        holding.execute("LOCK TABLE trajectory.trajectories IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(SinkError, match="changed nothing"):
            migrate(trajectory_database)
    assert migrate(trajectory_database) == (head_revision(), head_revision())


def test_released_migrations_are_frozen() -> None:
    folder = Path(versions.__path__[0])
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("0*.py"))}
    assert found == RELEASED, "a released migration is never edited: add a new revision, and its digest here"
