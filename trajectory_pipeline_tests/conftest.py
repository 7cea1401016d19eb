"""What tests of all folders share: a real Postgres of their own, empty and filled databases, settings.

The server is the embedded one, in a temporary folder, started once for the session and stopped with it; each test gets
databases of its own, cloned from a template, so that no test sees what another left.
"""

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest
from pydantic import SecretStr

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.embedded_postgres import EmbeddedServer
from trajectory_pipeline.demo.letta_sample.labels import sample_labels
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, PRICE_TABLE, SCRIPTED_MODEL, SimulatedJudge
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline_tests.letta_sample import load_sample
from trajectory_pipeline_tests.memory_folder import memory_folder
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.server_databases import create_database, drop_database

API_KEY = "sk-must-never-be-seen"
# Nothing here needs to survive a power cut.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "256MB"}


SERVER_FIXTURES = frozenset({"postgres_server", "running_judge"})
"""A test that uses one of them, directly or not, needs a server."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that start no server and no process")
    parser.addoption("--browser", action="store_true", help="also the tests that drive a browser")
    parser.addoption("--heavy", action="store_true", help="only the tests that are marked as heavy")


def pytest_configure(config: pytest.Config) -> None:
    """Restore signals for the processes of the tests: background jobs ignore Ctrl-C, jobs of nohup a lost terminal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _choose_examples(8 if config.getoption("--fast") else 20)


def _choose_examples(most: int) -> None:
    """Let properties draw the same examples in every run, here and in CI: a failure is found again by another run.

    How long it takes to draw one depends on what else the machine does.
    """
    check = hypothesis.HealthCheck
    hypothesis.settings.register_profile(
        "suite",
        max_examples=most,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[check.too_slow, check.data_too_large, check.large_base_example],
    )
    hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need a server, and leave out what ``--fast`` leaves out."""
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")
    if not config.getoption("--browser"):
        browser = [item for item in items if "browser" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=browser)
        items[:] = [item for item in items if item not in set(browser)]
    heavy = [item for item in items if bool(item.get_closest_marker("heavy")) != config.getoption("--heavy")]
    config.hook.pytest_deselected(items=heavy)
    items[:] = [item for item in items if item not in set(heavy)]
    if config.getoption("--fast"):
        slow = [item for item in items if any(item.get_closest_marker(name) for name in ("server", "process", "slow"))]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture(autouse=True)
def _no_process_when_fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that starts a process under ``--fast``: its module lacks ``pytest.mark.process``."""
    if request.config.getoption("--fast"):

        def refuse(*_: object, **__: object) -> None:
            pytest.fail("this test starts a process: mark it with pytest.mark.process")

        monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A Postgres server for this session."""
    with memory_folder(otherwise=tmp_path_factory.mktemp("postgres")) as parent:
        folder = parent / "server"
        with embedded_postgres.start(folder, settings=FAST) as server:
            yield server
        # pytest keeps its folders for a while, and the cluster of root may not even lie in them.
        embedded_postgres.remove(folder)


@pytest.fixture(scope="session")
def _templates(postgres_server: EmbeddedServer) -> EmbeddedServer:
    create_database(postgres_server, "template_letta")
    load_sample(postgres_server.url("template_letta"))
    create_database(postgres_server, "template_trajectory")
    migrate(postgres_server.url("template_trajectory"))
    return postgres_server


@pytest.fixture
def make_database(postgres_server: EmbeddedServer) -> Iterator[Callable[[str | None], str]]:
    """A function that makes a database, empty or from a template, and returns its URL."""
    made: list[str] = []

    def make(template: str | None = None) -> str:
        name = f"test_{os.getpid()}_{next(_NUMBERS)}"
        create_database(postgres_server, name, template)
        made.append(name)
        return postgres_server.url(name)

    yield make
    for name in made:
        drop_database(postgres_server, name)


_NUMBERS = itertools.count()


@pytest.fixture
def empty_database(make_database: Callable[[str | None], str]) -> str:
    """URL of a fresh, empty database."""
    return make_database(None)


@pytest.fixture
def letta_database(_templates: EmbeddedServer, make_database: Callable[[str | None], str]) -> str:
    """URL of a fresh database that holds the sample; the test may change it."""
    return make_database("template_letta")


@pytest.fixture
def trajectory_database(_templates: EmbeddedServer, make_database: Callable[[str | None], str]) -> str:
    """URL of a fresh database with the migrated, empty schema ``trajectory``."""
    return make_database("template_trajectory")


@pytest.fixture
def settings(letta_database: str, trajectory_database: str, tmp_path: Path) -> Settings:
    """Settings that name the test's own databases and folder, and no judge, whatever the environment says."""
    return make_settings(
        source__postgres_url=letta_database,
        storage__database_url=trajectory_database,
        dagster__database_url=trajectory_database,
        storage__data_folder=tmp_path / "data",
    )


@pytest.fixture
def pipeline(letta_database: str, trajectory_database: str, tmp_path: Path) -> Pipeline:
    """A pipeline over a fresh copy of the sample, without a judge."""
    return Pipeline(letta_database, trajectory_database, tmp_path / "parquet")


def make_settings(**values: Any) -> Settings:
    """Return default settings with these values, whatever the environment says: ``make_settings(judge__model="m")``."""
    groups: dict[str, Any] = {name: field.annotation for name, field in Settings.model_fields.items()}
    defaults = {
        name: group.model_construct(**{key: field.get_default() for key, field in group.model_fields.items()})
        for name, group in groups.items()
    }
    return change_settings(Settings.model_construct(**defaults), **values)


def change_settings(settings: Settings, **values: Any) -> Settings:
    """Return the settings with these values changed: ``change_settings(settings, budget__daily_usd=Decimal(1))``."""
    groups = dict(settings)
    for name, value in values.items():
        group, _, field = name.partition("__")
        assert field in type(groups[group]).model_fields, name
        groups[group] = groups[group].model_copy(update={field: value})
    return settings.model_copy(update=groups)


@pytest.fixture(scope="session")
def make_own_settings(
    _templates: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Settings]]:
    """A function that makes settings with databases of their own, which stand until the session ends."""
    made: list[str] = []

    def database(template: str) -> str:
        name = f"own_{os.getpid()}_{next(_NUMBERS)}"
        create_database(_templates, name, template)
        made.append(name)
        return _templates.url(name)

    def make() -> Settings:
        folder: Path = tmp_path_factory.mktemp("own")
        sinks = database("template_trajectory")
        return make_settings(
            source__postgres_url=database("template_letta"),
            storage__database_url=sinks,
            dagster__database_url=sinks,
            storage__data_folder=folder / "data",
        )

    yield make
    for name in made:
        drop_database(_templates, name)


@pytest.fixture(scope="session")
def running_judge() -> Iterator[SimulatedJudge]:
    """A simulated judge for this session."""
    with SimulatedJudge.start() as judge:
        yield judge


@pytest.fixture(scope="session")
def story(make_own_settings: Callable[[], Settings], running_judge: SimulatedJudge) -> Pipeline:
    """The demonstration's runs, judged and labelled; a test must leave them as they are."""
    settings = make_own_settings()
    source = str(settings.source.postgres_url)
    with psycopg.connect(source) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    STORY.load(source)
    folder = settings.storage.data_folder / "parquet"
    pipeline = Pipeline(source, str(settings.storage.database_url), folder, running_judge.base_url, SCRIPTED_MODEL)
    hours = list(STORY.partitions())
    pipeline.capture(*hours)
    with pipeline.storage.pooled() as storage:
        run = pipeline.refine_range(hours, storage)
        for hour in hours:
            run.publish(hour)
    write_labels(TrajectoryDatabase(pipeline.database_url), sample_labels())
    return pipeline


@pytest.fixture
def own_story(story: Pipeline, make_database: Callable[[str | None], str]) -> Pipeline:
    """A copy of the story's sink, with its labels, that a test may change."""
    copy = replace(story, database_url=make_database(urlsplit(story.database_url).path[1:]))
    # Datasets that other tests exported are noted in the story.
    copy.do(
        "TRUNCATE trajectory.exports, trajectory.export_runs, trajectory.export_bands, trajectory.export_groups,"
        " trajectory.export_duplicates"
    )
    return copy


@pytest.fixture
def judge(running_judge: SimulatedJudge) -> Iterator[SimulatedJudge]:
    """The session's simulated judge with an empty usage log, and without faults before and after the test."""
    running_judge.clear_faults()
    running_judge.clear_batches()
    running_judge.reset_calls()
    yield running_judge
    running_judge.clear_faults()


def with_judge(settings: Settings, judge: SimulatedJudge) -> Settings:
    """Return the settings with this judge in them."""
    return change_settings(
        settings,
        judge__model=JUDGE_MODEL,
        judge__base_url=judge.base_url,
        judge__api_key=SecretStr(API_KEY),
        budget__prices_file=PRICE_TABLE,
    )
