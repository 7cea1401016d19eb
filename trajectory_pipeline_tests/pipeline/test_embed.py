"""Search texts and embeddings: of every trajectory, once, up to date whatever changes, and none of what is erased."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import numpy as np
import psycopg
import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.errors import PipelineError
from trajectory_pipeline.maintenance.retention import prune_partition
from trajectory_pipeline.partition_keys import HOUR as ONE_HOUR
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.local_embedder import LocalEmbedder
from trajectory_pipeline.pipeline.pending_embeddings import find_pending_embeddings
from trajectory_pipeline.pipeline.query_embedding import searched_space
from trajectory_pipeline.schema.enums import RedactionMode
from trajectory_pipeline.search.embedding_models import EmbeddingModel, Vector
from trajectory_pipeline.storage.postgres import pgvector
from trajectory_pipeline.storage.postgres.search_texts import remove_texts
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.embedding import REDACTOR, embed, embedding_run, embeddings, texts
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, delete_run, only, some_run

HOURS = [hour for _, hour in sorted((size, hour) for hour, size in sample_partitions().items() if size > 4)]
HOUR, OTHER = HOURS[0], HOURS[1]
"""Partitions with few runs."""
BUSY = HOURS[-1]


def tiny(name: str = "tiny", asked: list[str] | None = None, numbers: Sequence[float] = ()) -> LocalEmbedder:
    """A model of as many numbers as are given, or of eight that depend on the text."""

    def embed_texts(given: Sequence[str]) -> list[Vector]:
        if asked is not None:
            asked.extend(given)
        return [np.array(numbers or [1 + text.count(letter) for letter in "aeioutrn"], np.float32) for text in given]

    return LocalEmbedder(EmbeddingModel(name, weights_digest=name), embed_texts)


def pending(pipeline: Pipeline, embedder: LocalEmbedder | None = None, *, later: timedelta = timedelta(0)) -> list[str]:
    now = pipeline.database.now() + later
    return find_pending_embeddings(pipeline.database, embedder or tiny(), REDACTOR, now).partition_keys


def test_every_trajectory_has_a_text_and_an_embedding(pipeline: Pipeline) -> None:
    (captured,) = pipeline.capture(BUSY)
    (result,) = embed(pipeline, BUSY)
    stored, vectors = texts(pipeline), embeddings(pipeline)
    assert captured.written is not None
    assert len(stored) == captured.written.rows
    with_words = {run_id for run_id, row in stored.items() if row["text"]}
    assert set(vectors) == with_words
    assert (result.texts, result.embedded, result.failed, result.pending) == (len(with_words), len(with_words), 0, 0)
    assert {row["dimensions"] for row in vectors.values()} == {256}
    for row in pipeline.ask("SELECT l2_norm(embedding) AS length FROM trajectory.trajectory_embeddings"):
        assert row["length"] == pytest.approx(1, abs=1e-3)
    model = only(pipeline.ask("SELECT * FROM trajectory.embedding_models"))
    assert (model["name"], model["dimensions"], model["is_current"]) == ("wordllama", 256, True)
    assert len(model["weights_digest"]) == 64
    assert {(row["model_id"], row["text_digest"]) for row in vectors.values()} == {
        (model["model_id"], stored[run_id]["text_digest"]) for run_id in vectors
    }


def test_embedding_again_asks_and_changes_nothing(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    asked: list[str] = []
    embed(pipeline, HOUR, embedder=tiny(asked=asked))
    assert asked
    tables = ("search_texts", "trajectory_embeddings", "embedding_models")
    before = [pipeline.ask(f"SELECT xmin::text, t.* FROM trajectory.{table} t ORDER BY 2") for table in tables]
    asked.clear()
    embed(pipeline, HOUR, embedder=tiny(asked=asked))
    assert asked == []
    assert [pipeline.ask(f"SELECT xmin::text, t.* FROM trajectory.{table} t ORDER BY 2") for table in tables] == before


def test_equal_texts_are_embedded_once(pipeline: Pipeline) -> None:
    same = '[{"type": "text", "text": "the same task"}]'
    pipeline.change_source(f"UPDATE messages SET content = '{same}' WHERE role = 'user'")
    pipeline.capture(HOUR, OTHER)
    asked: list[str] = []
    embed(pipeline, HOUR, embedder=tiny(asked=asked))
    embed(pipeline, OTHER, embedder=tiny(asked=asked))
    assert len(asked) == len(set(asked)) < len([row for row in texts(pipeline).values() if row["text"]])
    assert len(embeddings(pipeline)) == len([row for row in texts(pipeline).values() if row["text"]])


def test_verdict_that_arrives_changes_only_texts_with_a_summary(pipeline: Pipeline, judge: SimulatedJudge) -> None:
    pipeline.judge_url = judge.base_url
    pipeline.capture(HOUR)
    asked: list[str] = []
    embed(pipeline, HOUR, embedder=tiny(asked=asked))
    assert not [text for text in asked if "Summary:" in text]
    before = embeddings(pipeline)
    assert pending(pipeline) == []
    pipeline.refine(HOUR)
    assert pending(pipeline) == [partition_key(HOUR)]
    asked.clear()
    embed(pipeline, HOUR, embedder=tiny(asked=asked))
    assert pending(pipeline) == []
    judged = {
        row["run_id"]: row["verdict_key"]
        for row in pipeline.ask("SELECT * FROM trajectory.verdicts WHERE summary IS NOT NULL")
    }
    assert judged
    assert asked
    assert all("Summary:" in text for text in asked)
    for run_id, row in texts(pipeline).items():
        assert row["verdict_key"] == judged.get(run_id)
        assert ("Summary:" in row["text"]) == (run_id in judged)
        if run_id not in judged:
            assert embeddings(pipeline).get(run_id) == before.get(run_id)


def test_answer_to_an_approval_request_is_found_by_the_task_of_its_chain(pipeline: Pipeline) -> None:
    pipeline.capture(*sample_partitions())
    embed(pipeline, *sample_partitions())
    rows = pipeline.ask(
        "SELECT a.text AS asking, b.text AS answering FROM trajectory.trajectories t"
        " JOIN trajectory.search_texts b USING (run_id) JOIN trajectory.search_texts a ON a.run_id = t.continues_run_id"
        " WHERE a.text LIKE 'Task: %'"
    )
    assert rows
    for row in rows:
        assert row["answering"].splitlines()[0] == row["asking"].splitlines()[0]


def test_changed_task_makes_the_texts_of_later_partitions_stale(pipeline: Pipeline) -> None:
    """Also where the later partition was being embedded meanwhile, and its entry is written last."""
    pipeline.capture(HOUR, OTHER)
    first = some_run(pipeline, f"message_count > 2 AND partition_key = '{partition_key(HOUR)}'")
    second = some_run(pipeline, f"message_count > 2 AND partition_key = '{partition_key(OTHER)}'")
    pipeline.do(f"UPDATE trajectory.trajectories SET continues_run_id = '{first}' WHERE run_id = '{second}'")
    embed(pipeline, HOUR, OTHER, embedder=tiny())
    assert pending(pipeline) == []

    def change_task(words: str) -> None:
        content = f'[{{"type": "text", "text": "{words}"}}]'
        pipeline.change_source(f"UPDATE messages SET content = '{content}' WHERE run_id = '{first}' AND role = 'user'")
        pipeline.capture(HOUR)

    change_task("another task")
    assert pending(pipeline) == [partition_key(HOUR)]
    embed(pipeline, HOUR, embedder=tiny())
    assert pending(pipeline) == [partition_key(OTHER)]
    run = embedding_run(pipeline, tiny())
    run.embed_partitions([OTHER])
    change_task("yet another task")
    embed(pipeline, HOUR, embedder=tiny())
    run.publish(OTHER)
    before = texts(pipeline)[second]["content_digest"]
    assert pending(pipeline) == [partition_key(OTHER)]
    embed(pipeline, OTHER, embedder=tiny())
    assert pending(pipeline) == []
    assert texts(pipeline)[second]["content_digest"] != before


def test_without_a_model_texts_are_made_and_the_reason_is_told(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run = embedding_run(pipeline, reason="No embedding model is configured.")
    run.embed_partitions([HOUR])
    result = run.publish(HOUR)
    assert result.reason == "No embedding model is configured."
    assert result.texts > 0
    assert (result.embedded, embeddings(pipeline)) == (0, {})
    found = find_pending_embeddings(pipeline.database, None, REDACTOR, pipeline.database.now())
    assert found.partition_keys == []
    # A model that is set later embeds the texts that are there.
    assert pending(pipeline) == [partition_key(HOUR)]


def test_without_pgvector_texts_are_made_and_installing_it_later_heals(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.capture(HOUR)
    pipeline.do("DROP EXTENSION vector CASCADE", "DROP TABLE trajectory.trajectory_embeddings")
    with monkeypatch.context() as patch:
        patch.setattr(pgvector, "EXTENSION", "vector_that_is_not_installed")
        (result,) = embed(pipeline, HOUR, embedder=tiny())
        assert "the server does not have: install it there" in result.reason
        assert result.texts > 0
        assert pending(pipeline) == []
    pipeline.do("CREATE EXTENSION vector")
    embed(pipeline, HOUR, embedder=tiny())
    assert len(embeddings(pipeline)) == result.texts


def test_pgvector_without_the_right_to_create_it_says_what_to_run(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    pipeline.do("DROP EXTENSION vector CASCADE", "DROP TABLE trajectory.trajectory_embeddings")
    role, password = f"role_{secrets.token_hex(4)}", secrets.token_hex(8)
    pipeline.do(
        f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
        f"GRANT USAGE ON SCHEMA trajectory TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA trajectory TO {role}",
    )
    try:
        user = psycopg.conninfo.make_conninfo(pipeline.database_url, user=role, password=password)
        parts = psycopg.conninfo.conninfo_to_dict(user)
        url = f"postgresql://{role}:{password}@{parts['host']}:{parts['port']}/{parts['dbname']}"
        (result,) = embed(replace(pipeline, database_url=url), HOUR, embedder=tiny())
        assert "run `CREATE EXTENSION vector` there as a user who may" in result.reason
        assert result.texts > 0
        pipeline.do("CREATE EXTENSION vector")
        (result,) = embed(replace(pipeline, database_url=url), HOUR, embedder=tiny())
        assert "trajectory.trajectory_embeddings is not there yet: run `trajectory-pipeline migrate`" in result.reason
    finally:
        pipeline.do(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_changed_model_is_searched_when_it_has_caught_up(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR, OTHER)
    old, new = tiny("old"), tiny("new", numbers=[3, 4])
    embed(pipeline, HOUR, OTHER, embedder=old)
    assert pending(pipeline, old) == []
    assert pending(pipeline, new) == sorted(map(partition_key, (HOUR, OTHER)))

    def searched() -> object:
        return getattr(searched_space(pipeline.database).model, "name", None)

    (result,) = embed(pipeline, HOUR, embedder=new)
    assert (result.is_searched, searched()) == (False, "old")
    (result,) = embed(pipeline, OTHER, embedder=new)
    assert (result.is_searched, searched()) == (True, "new")
    rows = pipeline.ask(
        "SELECT m.name, count(*) AS n, array_agg(DISTINCT vector_dims(e.embedding)) AS dimensions"
        " FROM trajectory.trajectory_embeddings e JOIN trajectory.embedding_models m USING (model_id) GROUP BY 1"
    )
    assert {row["name"]: row["dimensions"] for row in rows} == {"old": [8], "new": [2]}
    assert len({row["n"] for row in rows}) == 1


@pytest.mark.parametrize("numbers", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_embedding_without_direction_is_not_stored(pipeline: Pipeline, numbers: list[float]) -> None:
    pipeline.capture(HOUR)
    (result,) = embed(pipeline, HOUR, embedder=tiny(numbers=numbers))
    assert (result.embedded, result.failed) == (0, result.texts)
    assert {row["embedding"] for row in embeddings(pipeline).values()} == {None}
    assert all(text.startswith("out_of_range: The embedding is unusable: ") for text in result.errors.values())
    assert searched_space(pipeline.database).model is None
    # The same model gives the same: it is not asked again.
    assert pending(pipeline, later=timedelta(days=9)) == []


def test_redaction_and_its_mode_make_texts_again(pipeline: Pipeline) -> None:
    secret = "sk-proj-" + "Zx9" * 16
    pipeline.capture(HOUR)
    run_id = some_run(pipeline, "message_count > 2 AND continues_run_id IS NULL AND heuristic_outcome = 'success'")
    pipeline.change_source(
        f'UPDATE messages SET content = \'[{{"type": "text", "text": "use the key {secret}"}}]\''
        f" WHERE run_id = '{run_id}' AND role = 'user'"
    )
    pipeline.capture(HOUR)
    assert pending(pipeline) == [partition_key(HOUR)]
    embed(pipeline, HOUR, embedder=tiny())
    assert "use the key [secret:api_key:" in texts(pipeline)[run_id]["text"]
    assert not pipeline.ask("SELECT 1 AS x FROM trajectory.search_texts s WHERE s::text LIKE %s", f"%{secret}%")
    other = replace(REDACTOR, mode=RedactionMode.OFF)
    found = find_pending_embeddings(pipeline.database, tiny(), other, pipeline.database.now())
    assert found.partition_keys == [partition_key(HOUR)]


def test_run_that_moves_keeps_its_embedding(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    embed(pipeline, HOUR, embedder=tiny())
    run_id = next(iter(embeddings(pipeline)))
    moved_to = HOUR + ONE_HOUR
    pipeline.change_source(f"UPDATE runs SET completed_at = completed_at + interval '1 hour' WHERE id = '{run_id}'")
    pipeline.capture(HOUR, moved_to)
    asked: list[str] = []
    embed(pipeline, HOUR, moved_to, embedder=tiny(asked=asked))
    assert asked == [] or run_id not in asked
    assert embeddings(pipeline)[run_id]["partition_key"] == partition_key(moved_to)
    assert texts(pipeline)[run_id]["partition_key"] == partition_key(moved_to)


def test_deleted_run_is_not_embedded_and_not_pending(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run_id = some_run(pipeline)
    delete_run(pipeline, run_id)
    pipeline.capture(HOUR)
    embed(pipeline, HOUR, embedder=tiny())
    assert run_id not in texts(pipeline)
    assert pending(pipeline) == []


def test_pruning_removes_texts_and_embeddings_and_an_explicit_materialization_brings_them_back(
    pipeline: Pipeline,
) -> None:
    pipeline.capture(HOUR, OTHER)
    embed(pipeline, HOUR, OTHER, embedder=tiny())
    kept = {run_id for run_id, row in texts(pipeline).items() if row["partition_key"] == partition_key(OTHER)}
    prune_partition("trajectories", HOUR, pipeline.storage)
    assert set(texts(pipeline)) == kept
    assert set(embeddings(pipeline)) <= kept
    assert pending(pipeline) == []
    with pytest.raises(PipelineError, match="materialize trajectories of that partition first"):
        embed(pipeline, HOUR, embedder=tiny())
    pipeline.capture(HOUR)
    assert pending(pipeline) == [partition_key(HOUR)]
    embed(pipeline, HOUR, embedder=tiny())
    assert len(texts(pipeline)) > len(kept)


def test_partition_without_trajectories_says_what_to_do(pipeline: Pipeline) -> None:
    with pytest.raises(PipelineError, match=r"There are no trajectories of .*: materialize trajectories"):
        embed(pipeline, HOUR, embedder=tiny())


def test_removed_text_is_found_missing(pipeline: Pipeline) -> None:
    """As erasing does: the ledger forgets the inputs of the partition, so that what may stay is made again."""
    pipeline.capture(HOUR)
    embed(pipeline, HOUR, embedder=tiny())
    before = texts(pipeline)
    with pipeline.database.connect() as connection:
        remove_texts(connection, list(before))
    assert (texts(pipeline), embeddings(pipeline)) == ({}, {})
    assert pending(pipeline) == [partition_key(HOUR)]
    embed(pipeline, HOUR, embedder=tiny())
    assert {key: row["text"] for key, row in texts(pipeline).items()} == {
        key: row["text"] for key, row in before.items()
    }


# --- agent and organization, which are beside texts and embeddings too ------------------------------------------------

_DIFFERENT = """
SELECT x.* FROM (SELECT run_id, organization_id, agent_id FROM trajectory.search_texts
    UNION ALL SELECT run_id, organization_id, agent_id FROM trajectory.trajectory_embeddings) x
JOIN trajectory.trajectories t USING (run_id)
WHERE (x.organization_id, x.agent_id) IS DISTINCT FROM (t.organization_id, t.agent_id)"""


def move(pipeline: Pipeline, run_id: str, *, to_organization: str | None = None) -> None:
    """Let a run end a day later, and convert its former hour first: its trajectory is deleted, and inserted again."""
    if to_organization:
        pipeline.change_source(
            f"INSERT INTO organizations (id, name, privileged_tools) VALUES ('{to_organization}', 'other', false)",
            f"UPDATE runs SET organization_id = '{to_organization}' WHERE id = '{run_id}'",
        )
    pipeline.change_source(f"UPDATE runs SET completed_at = completed_at + interval '1 day' WHERE id = '{run_id}'")
    pipeline.capture(HOUR)
    pipeline.read(HOUR + timedelta(days=1))
    pipeline.capture(HOUR)
    assert pipeline.trajectory(run_id) is None


def test_a_run_that_changes_hour_and_organization_is_of_the_new_one_everywhere(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    embed(pipeline, HOUR, embedder=tiny())
    run_id = some_run(pipeline)
    move(pipeline, run_id, to_organization="org-new")
    pipeline.capture(HOUR + timedelta(days=1))
    assert pipeline.trajectory(run_id)["organization_id"] == "org-new"
    assert pipeline.ask(_DIFFERENT) == []


def test_an_embedding_that_arrives_while_its_run_changes_hour_is_of_its_organization(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run_id, model = some_run(pipeline), tiny()
    moved: list[str] = []

    def embed_texts(given: Sequence[str]) -> list[Vector]:
        if not moved:
            moved.append(run_id)
            move(pipeline, run_id)
        return model.embed_texts(given)

    embed(pipeline, HOUR, embedder=replace(model, embed_texts=embed_texts))
    pipeline.capture(HOUR + timedelta(days=1))
    assert run_id in embeddings(pipeline)
    assert pipeline.ask(_DIFFERENT) == []
