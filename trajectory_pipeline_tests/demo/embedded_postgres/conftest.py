"""A folder with a ready-made cluster for each test."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline_tests.demo.embedded_postgres.processes import (
    SETTINGS,
    nothing_is_left,
    server_user_can_enter_environment,
    within,
)


@pytest.fixture(scope="session")
def reachable_base() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own is closed to others, so root would need its fallback."""
    base = Path(tempfile.mkdtemp(prefix="embedded-postgres-tests-")).resolve()
    base.chmod(0o755)
    yield base
    shutil.rmtree(base, ignore_errors=True)


def _hard_name(reachable_base: Path) -> Path:
    """A folder that does not exist yet, with a name that is not easy on shells and encodings."""
    # Where the server's user cannot enter the environment, programs are copied beside the data, and initdb stands no
    # quotes and no dollar in its own path: such folders then keep everything under /var.
    suffix = ' $HOME "ü"' if server_user_can_enter_environment() else " ü"
    parent = Path(tempfile.mkdtemp(prefix="a test's ", suffix=suffix, dir=reachable_base))
    parent.chmod(0o755)
    return parent / "postgres"


@pytest.fixture(scope="session")
def _shared_folder(reachable_base: Path) -> Path:
    return _hard_name(reachable_base)


@pytest.fixture
def folder(_shared_folder: Path) -> Iterator[Path]:
    """A folder with a whole cluster and no server.

    The tests share it, one after the other, because 40 MB a test are slow to write: each leaves a cluster that works.
    """
    if not (_shared_folder / "cluster").exists():
        embedded_postgres.start(_shared_folder, settings=SETTINGS).release()
    yield _shared_folder
    left_nothing = within(10, lambda: nothing_is_left(_shared_folder))
    if not left_nothing:
        embedded_postgres.remove(_shared_folder)
    assert left_nothing


@pytest.fixture
def new_folder(reachable_base: Path) -> Iterator[Path]:
    """A folder that does not exist yet."""
    new = _hard_name(reachable_base)
    yield new
    left_nothing = within(10, lambda: nothing_is_left(new))
    embedded_postgres.remove(new)
    assert left_nothing
    assert not new.exists()


@pytest.fixture
def own_folder(new_folder: Path, folder: Path) -> Path:
    """A folder with a whole cluster for a test that does not leave it so."""
    new_folder.mkdir()
    new_folder.chmod(0o755)
    # As it is, with its owner: for root the data belongs to another user.
    subprocess.run(["cp", "-Rp", str(folder / "cluster"), str(new_folder)], check=True)
    return new_folder
