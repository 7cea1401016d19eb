"""Runs of two sources beside each other: wherever a run is shown its source is said, and a filter keeps one source."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from trajectory_pipeline.cli.connections import Connections
from trajectory_pipeline.databases import Databases
from trajectory_pipeline.demo.letta_code_sample import LETTA_CODE_FOLDER, LETTA_CODE_NAME
from trajectory_pipeline.partition_keys import LETTA, SourceHour
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.settings import Settings, SourceSpec
from trajectory_pipeline.sources.letta_code.source import LettaCodeSource
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.cli.conftest import Command, run_command, squeezed  # noqa: F401 - a fixture
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.embedding import embedding_run
from trajectory_pipeline_tests.pipeline.materializing import Pipeline
from trajectory_pipeline_tests.serve.serving import serving
from trajectory_pipeline_tests.serve.test_mcp import call, told

BOTH = {LETTA, LETTA_CODE_NAME}
QUERY = "the"
"""Both sources have runs with this word; ``mode=words``, so that no model is asked."""


@pytest.fixture(scope="module")
def settings_of_both(make_own_settings: Callable[[], Settings]) -> Settings:
    """Settings whose sinks hold an hour of the sample, and the demonstration's runs of Letta Code."""
    settings = make_own_settings()
    pipeline = Pipeline(
        str(settings.source.postgres_url),
        str(settings.storage.database_url),
        Path(settings.storage.parquet_location),
    )
    letta_hour = max(sample_partitions().items(), key=lambda item: item[1])[0]
    source = LettaCodeSource(LETTA_CODE_NAME, (LETTA_CODE_FOLDER,))
    with source.snapshot() as snapshot:
        (hour,) = (SourceHour.of(hour, LETTA_CODE_NAME) for hour in snapshot.runs_by_hour())
    pipeline.capture(letta_hour)
    materialize_terminal_runs(hour, source, pipeline.storage)
    pipeline.convert(hour)
    texts = embedding_run(pipeline, reason="none")
    texts.embed_partitions([letta_hour, hour])
    return settings


@pytest.fixture(scope="module")
def pipeline_of_both(settings_of_both: Settings) -> Pipeline:
    settings = settings_of_both
    return Pipeline(
        str(settings.source.postgres_url), str(settings.storage.database_url), Path(settings.storage.parquet_location)
    )


@pytest.fixture(scope="module")
def client(settings_of_both: Settings, pipeline_of_both: Pipeline) -> Iterator[httpx2.Client]:
    with (
        serving(settings_of_both, pipeline_of_both.storage) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def variables(settings_of_both: Settings) -> dict[str, str]:
    return {
        "LETTA_PG_URI": str(settings_of_both.source.postgres_url),
        "TRAJECTORY_DATABASE_URL": str(settings_of_both.storage.database_url),
        "TRAJECTORY_DATA_FOLDER": str(settings_of_both.storage.data_folder),
    }


def a_run(pipeline: Pipeline, source: str) -> str:
    (row,) = pipeline.ask(
        "SELECT run_id FROM trajectory.trajectories WHERE source = %s ORDER BY step_count DESC, run_id LIMIT 1", source
    )
    return str(row["run_id"])


def test_one_search_finds_both_and_the_filter_only_one(
    client: httpx2.Client,
    run_command: Command,  # noqa: F811
    variables: dict[str, str],
) -> None:
    """The same by REST, MCP, command and page."""

    def by_rest(**filters: str) -> list[str]:
        answer = client.get("/v1/search", params={"q": QUERY, "k": 100, "mode": "words", **filters})
        return [hit["source"] for hit in answer.json()["items"]]

    def by_command(*filters: str) -> list[str]:
        result = run_command("search", QUERY, "--k", "100", "--mode", "words", "--json", *filters, **variables)
        return [hit["source"] for hit in json.loads(result.stdout)["runs"]]

    def by_mcp(tool: str = "list_runs", **arguments: object) -> list[str]:
        data, _ = told(call(client, tool, {"limit": 50 if tool == "list_runs" else 20, **arguments}))
        return [run["source"] for run in data["runs"]]

    searched = {"tool": "find_similar_runs", "query": QUERY, "mode": "words"}
    assert set(by_rest()) == set(by_command()) == set(by_mcp()) == BOTH
    for source in BOTH:
        for found in (
            by_rest(source=source),
            by_command("--source", source),
            by_mcp(source=source),
            by_mcp(**searched, source=source),
        ):
            assert set(found) == {source}
        page = client.get("/", params={"source": source}).text
        assert f'<p class="soft">{source} · ' in page
        assert not any(f'<p class="soft">{other} · ' in page for other in BOTH - {source})
    assert by_mcp(source="nowhere") == []
    table = squeezed(run_command("search", QUERY, "--mode", "words", "--source", LETTA_CODE_NAME, **variables))
    assert f"from {LETTA_CODE_NAME}" in table


def test_a_run_says_its_source_wherever_it_is_read(
    client: httpx2.Client,
    pipeline_of_both: Pipeline,
    run_command: Command,  # noqa: F811
    variables: dict[str, str],
) -> None:
    for source in BOTH:
        run_id = a_run(pipeline_of_both, source)
        assert client.get(f"/v1/trajectories/{run_id}").json()["source"] == source
        for arguments in ({}, {"from_turn": 2}):
            data, _ = told(call(client, "get_trajectory", {"run_id": run_id, **arguments}))
            assert data["run"]["source"] == source
        assert f"<code>{run_id}</code> from {source} · " in client.get(f"/runs/{run_id}").text
        shown = squeezed(run_command("show", run_id, **variables))
        assert f"source {source} " in shown
        sources = f"{LETTA_CODE_NAME}=letta_code:{LETTA_CODE_FOLDER}"
        explained = run_command("explain", run_id, "--json", TRAJECTORY_SOURCES=sources, **variables)
        assert json.loads(explained.stdout)["source"]["id"] == run_id


@pytest.mark.parametrize("is_empty", [True, False])
@pytest.mark.parametrize("others", [(), (SourceSpec(LETTA_CODE_NAME, "letta_code", str(LETTA_CODE_FOLDER)),)])
def test_an_empty_embedded_letta_database_is_none_where_other_sources_are_set(
    is_empty: bool, others: tuple[SourceSpec, ...], make_own_settings: Callable[[], Settings], trajectory_database: str
) -> None:
    settings = make_own_settings()
    letta_url = trajectory_database if is_empty else str(settings.source.postgres_url)
    source = settings.source.model_copy(update={"postgres_url": None, "others": others})
    opened = Connections(
        settings.model_copy(update={"source": source}),
        Databases(letta_url, trajectory_database, trajectory_database, embedded=True),
        Storage.at(settings.storage.parquet_location, trajectory_database),
    )
    assert opened.has_letta() == (not is_empty or not others)


def test_statistics_count_one_source(client: httpx2.Client, pipeline_of_both: Pipeline) -> None:
    (row,) = pipeline_of_both.ask(
        "SELECT count(*) AS runs FROM trajectory.trajectories WHERE source = %s", LETTA_CODE_NAME
    )
    data, _ = told(call(client, "outcome_statistics", {"source": LETTA_CODE_NAME}))
    assert [group["runs"] for group in data["groups"]] == [row["runs"]]


def test_export_takes_every_source_or_one(
    run_command: Command,  # noqa: F811
    variables: dict[str, str],
    pipeline_of_both: Pipeline,
    tmp_path: Path,
) -> None:
    counts = {
        row["source"]: row["runs"]
        for row in pipeline_of_both.ask("SELECT source, count(*) AS runs FROM trajectory.trajectories GROUP BY 1")
    }
    for target, filters, selected in (
        ("all", (), sum(counts.values())),
        ("one", ("--source", LETTA_CODE_NAME), counts[LETTA_CODE_NAME]),
    ):
        result = run_command("export", "csv", target, *filters, **variables)
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / target / "manifest.json").read_bytes())["selected"] == selected
    runs = [json.loads(line)["run_id"] for line in (tmp_path / "one" / "runs.jsonl").read_text().splitlines()]
    assert runs
    assert all(run_id.startswith(f"{LETTA_CODE_NAME}:") for run_id in runs)
