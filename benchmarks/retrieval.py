"""How well search finds runs of the same task: by words, by meaning, and by both.

    python -m benchmarks.retrieval                                  # the sample's runs, by their labels
    python -m benchmarks.retrieval --runs runs.jsonl.gz   # runs of another set

A file has one run a line: ``task_id``, and ``messages`` in OpenAI's chat form.
"""

import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import psycopg
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score, completeness_score, homogeneity_score

from trajectory_pipeline.demo import embedded_postgres
from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, label_records
from trajectory_pipeline.demo.letta_sample.load import STORY
from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.embed import EmbeddingRun
from trajectory_pipeline.pipeline.local_embedder import LocalEmbedder
from trajectory_pipeline.search.embedding_models import unit_vector
from trajectory_pipeline.search.embedding_models.wordllama import load_wordllama
from trajectory_pipeline.search.families import assign_families, measure_bar
from trajectory_pipeline.search.query import LONGEST_QUERY
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.migrate import migrate
from trajectory_pipeline.storage.postgres.search import SearchMode, search
from trajectory_pipeline.storage.storage import Storage


@dataclass(frozen=True)
class Case:
    """A query, the run that it is about (which is not counted), and the runs of the same task."""

    query: str
    run_id: str
    relevant: frozenset[str]


@dataclass(frozen=True)
class Figures:
    """Means over queries: recall among the first k, reciprocal rank of the first relevant, and whether it is first."""

    queries: int
    recall: float
    reciprocal_rank: float
    first: float


def measure(connection: psycopg.Connection, cases: Sequence[Case], mode: SearchMode, k: int) -> Figures:
    """Ask each query, and compare what is found with what is relevant."""
    recall, reciprocal, first = [], [], []
    for case in cases:
        vector = unit_vector(load_wordllama().embed([case.query])[0])
        hits = search(
            connection, case.query, 50, mode=mode, query_vector=None if isinstance(vector, str) else vector.tolist()
        )
        found = [hit.run_id for hit in hits if hit.run_id != case.run_id]
        recall.append(len(case.relevant & set(found[:k])) / min(k, len(case.relevant)))
        reciprocal.append(next((1 / place for place, one in enumerate(found, 1) if one in case.relevant), 0.0))
        first.append(float(bool(found) and found[0] in case.relevant))
    return Figures(len(cases), float(np.mean(recall)), float(np.mean(reciprocal)), float(np.mean(first)))


def sample_cases(run_ids: Sequence[str]) -> list[Case]:
    """Return what a labeller said of each run's task, in words of their own; runs of its family are relevant."""
    records = label_records(FIRST_ANNOTATOR)
    families = {run_id: records[run_id]["family"] for run_id in run_ids if run_id in records}
    return [
        Case(records[run_id]["task"], run_id, relevant)
        for run_id, family in families.items()
        if (relevant := frozenset(one for one, other in families.items() if other == family and one != run_id))
    ]


def file_cases(runs: Sequence[dict[str, Any]]) -> list[Case]:
    """Return what the user of each run said first; the other runs of its task are relevant."""
    ids = {f"run-{place}": run["task_id"] for place, run in enumerate(runs)}
    return [
        Case(
            " ".join(_user_texts(run)[:3])[:LONGEST_QUERY],
            run_id,
            frozenset(one for one, task in ids.items() if task == run["task_id"] and one != run_id),
        )
        for run_id, run in zip(ids, runs, strict=True)
    ]


def _user_texts(run: dict[str, Any]) -> list[str]:
    return [_text(message["content"]) for message in run["messages"] if message["role"] == "user"]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content or ())


def _rendered(run: dict[str, Any]) -> str:
    """Return the text of a run in the form of a search text."""
    tools = dict.fromkeys(
        call["function"]["name"] for message in run["messages"] for call in message.get("tool_calls") or ()
    )
    return f"Task: {' '.join(_user_texts(run))}\n\nTools: {', '.join(tools)}"


def fill_sample(database_url: str, source_url: str, folder: Path) -> list[str]:
    """Load, convert and embed the sample's runs; returns their ids."""
    STORY.load(source_url)
    storage, hours = Storage.at(str(folder), database_url), list(STORY.partitions())
    with LettaSource(source_url).pooled() as source:
        for hour in hours:
            materialize_terminal_runs(hour, source, storage)
            materialize_trajectories(hour, storage)
    EmbeddingRun(storage, LocalEmbedder(), Redactor(key=b"of this measurement")).embed_partitions(hours)
    rows = TrajectoryDatabase(database_url).rows("SELECT run_id FROM trajectory.search_texts ORDER BY run_id")
    return [row["run_id"] for row in rows]


def fill_file(database_url: str, runs: Sequence[dict[str, Any]]) -> None:
    """Store a trajectory, a search text and an embedding of each run of a file."""
    from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_runs

    model, texts = LocalEmbedder().model, [_rendered(run) for run in runs]
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO trajectory.embedding_models (model_id, name, dimensions, is_current, created_at)"
            " VALUES (%s, %s, %s, true, now())",
            [model.model_id, model.name, load_wordllama().dimensions],
        )
        vectors = [unit_vector(vector) for vector in load_wordllama().embed(texts)]
        add_runs(
            connection,
            [
                Run(f"run-{place}", text, np.asarray(vector).tolist(), model_id=model.model_id)
                for place, (text, vector) in enumerate(zip(texts, vectors, strict=True))
            ],
        )


def family_scores(connection: psycopg.Connection, labels: dict[str, str]) -> tuple[int, float, float, float]:
    """Return how many families there are, and how they agree with labels: adjusted Rand, homogeneity, completeness."""
    rows = connection.execute(
        "SELECT e.run_id, e.embedding::public.vector::real[] FROM trajectory.trajectory_embeddings e"
        " JOIN trajectory.trajectories t USING (run_id) ORDER BY t.end_time, e.run_id"
    )
    found = [(run_id, numbers) for run_id, numbers in rows if run_id in labels]
    run_ids = [run_id for run_id, _ in found]
    vectors = np.array([numbers for _, numbers in found], dtype=np.float32)
    families = [one.family_id for one in assign_families(run_ids, vectors, [], measure_bar(vectors).similarity)]
    truth = [labels[run_id] for run_id in run_ids]
    return (
        len(set(families)),
        float(adjusted_rand_score(truth, families)),
        float(homogeneity_score(truth, families)),
        float(completeness_score(truth, families)),
    )


@contextmanager
def _databases() -> Iterator[tuple[str, str, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        server_folder = Path(folder) / "server"
        with embedded_postgres.start(server_folder, settings={"fsync": "off"}) as server:
            for name in ("source", "trajectories"):
                server.ensure_database(name)
            migrate(server.url("trajectories"))
            yield server.url("trajectories"), server.url("source"), Path(folder) / "parquet"
        embedded_postgres.remove(server_folder)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Another set.")
@click.option("--k", default=3, show_default=True, type=click.IntRange(1, 20), help="Recall among the first k.")
def main(path: Path | None, k: int) -> None:
    """Measure recall, reciprocal rank and families."""
    with _databases() as (database_url, source_url, folder):
        if path is None:
            run_ids = fill_sample(database_url, source_url, folder)
            cases = sample_cases(run_ids)
            records = label_records(FIRST_ANNOTATOR)
            labels = {run_id: records[run_id]["family"] for run_id in run_ids if run_id in records}
        else:
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as lines:
                runs = [json.loads(line) for line in lines]
            fill_file(database_url, runs)
            cases, labels = file_cases(runs), {f"run-{n}": str(run["task_id"]) for n, run in enumerate(runs)}
        table = Table("mode", "queries", f"recall@{k}", "MRR", "first is right")
        with psycopg.connect(database_url) as connection:
            for mode in get_args(SearchMode)[1:] + get_args(SearchMode)[:1]:
                found = measure(connection, cases, mode, k)
                shares = (found.recall, found.reciprocal_rank, found.first)
                table.add_row(mode, str(found.queries), *(f"{share:.3f}" for share in shares))
            families = family_scores(connection, labels)
    Console().print(table)
    Console().print("{} families, adjusted Rand {:.2f}, homogeneity {:.2f}, completeness {:.2f}".format(*families))


if __name__ == "__main__":
    main()
