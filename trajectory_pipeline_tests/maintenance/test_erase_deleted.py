"""``TRAJECTORY_DELETED_CONTENT=erase``: no text of what is deleted at the source is left anywhere.

A word that is in every text of a run is searched for in every file of the storage, decompressed, and in every row of
every table. Ids, counts and times stay, and what is not deleted is unchanged.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow.parquet as pq
import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.maintenance.erase_deleted import erase_partition, partitions_to_erase
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.reconcile_counts import reconcile_partition
from trajectory_pipeline.pipeline.stale_partitions import find_stale_partitions
from trajectory_pipeline.schema.enums import Criterion, LabelSource
from trajectory_pipeline.schema.labels import Label, requirement_item
from trajectory_pipeline.schema.raw import TERMINAL_RUNS
from trajectory_pipeline.schema.trajectories import TRAJECTORIES
from trajectory_pipeline.schema.types import Sink
from trajectory_pipeline.schema.verdicts import REFINED_OUTCOMES, VERDICT_ATTEMPTS, VERDICTS
from trajectory_pipeline.storage.postgres.erasure import (
    RETAINED_ATTEMPT_COLUMNS,
    RETAINED_VERDICT_COLUMNS,
    erasable_columns,
)
from trajectory_pipeline.storage.postgres.labels import write_labels
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.embedding import embed
from trajectory_pipeline_tests.pipeline.materializing import Pipeline, Row
from trajectory_pipeline_tests.pipeline.test_source_changes import delete_run, some_run
from trajectory_pipeline_tests.pipeline.test_source_changes import row_of as row_of_hour

CANARY = "xylophone-canary"
HOUR = min((size, hour) for hour, size in sample_partitions().items() if size > 4)[1]
"""A partition with few runs: each test judges them."""


@pytest.fixture
def judged(pipeline: Pipeline, judge: SimulatedJudge) -> Pipeline:
    return replace(pipeline, judge_url=judge.base_url)


def row_of(pipeline: Pipeline, run_id: str, hour: datetime = HOUR) -> Row:
    return row_of_hour(pipeline, run_id, hour)


def chain(pipeline: Pipeline) -> tuple[str, str]:
    """A run that asks for an approval, and the run that answers it."""
    rows = Pipeline("", pipeline.letta_url, pipeline.folder).ask(
        "SELECT s.run_id AS asking, m.run_id AS answering FROM messages m JOIN steps s ON s.id = m.step_id"
        " WHERE s.run_id <> m.run_id AND m.run_id IS NOT NULL ORDER BY 1, 2 LIMIT 1"
    )
    return rows[0]["asking"], rows[0]["answering"]


def say_the_word(pipeline: Pipeline, run_id: str) -> None:
    """Put the word into every text of a run that people and agents write."""
    of_run = f"run_id = '{run_id}'"
    pipeline.change_source(
        f'UPDATE messages SET content = replace(content::text, \'"text": \', \'"text": "{CANARY}", "old": \')::json'
        f" WHERE {of_run}",
        f'UPDATE messages SET content = \'[{{"type": "text", "text": "{CANARY}"}}]\' WHERE {of_run}'
        " AND role = 'assistant'",
        f'UPDATE messages SET tool_calls = replace(tool_calls::text, \'"arguments": "\','
        f" '\"arguments\": \"{CANARY} ')::json, name = '{CANARY}' WHERE {of_run}",
        f'UPDATE messages SET tool_returns = replace(tool_returns::text, \'"func_response": "\','
        f' \'"func_response": "{CANARY} \')::json WHERE {of_run}',
        f"UPDATE steps SET error_type = 'LLMError', error_data = '{{\"message\": \"{CANARY}\"}}',"
        f" tags = '[\"{CANARY}\"]' WHERE {of_run}",
        f'UPDATE runs SET metadata_ = \'{{"run_type": "send_message", "error": "{CANARY}"}}\' WHERE id = \'{run_id}\'',
    )


def let_the_judge_say_it(pipeline: Pipeline, *run_ids: str) -> None:
    """Put the word into every text of the verdicts on runs and of their calls, as a judge that quotes would."""
    for table, retained in ((VERDICTS, RETAINED_VERDICT_COLUMNS), (VERDICT_ATTEMPTS, RETAINED_ATTEMPT_COLUMNS)):
        kinds = {column.name: column.type for column in table.columns}
        for name in erasable_columns(table, retained):
            value = {"json": f"'[\"{CANARY}\"]'", "string": f"'{CANARY}'"}.get(
                str(getattr(kinds[name], "value", "list")), f"ARRAY['{CANARY}']"
            )
            pipeline.do(f"UPDATE trajectory.{table.name} SET {name} = {value} WHERE run_id IN {(*run_ids, '')}")


def places_of_the_word(pipeline: Pipeline) -> set[str]:
    """Every table and file that holds the word."""
    found = set()
    for table in pipeline.ask(
        "SELECT table_name::text AS name FROM information_schema.tables WHERE table_schema = 'trajectory'"
    ):
        if pipeline.ask(f"SELECT 1 AS x FROM trajectory.{table['name']} t WHERE t::text LIKE '%{CANARY}%' LIMIT 1"):
            found.add(str(table["name"]))
    for path in pipeline.folder.rglob("*"):
        if path.is_file():
            assert path.suffix == ".parquet", path
            if CANARY in str(pq.read_table(path).to_pylist()) or CANARY.encode() in path.read_bytes():
                found.add(path.relative_to(pipeline.folder).parts[0])
    return found


def in_the_sinks(pipeline: Pipeline, run_id: str, *hours: datetime) -> None:
    """Capture and judge, with the word in every text of the run."""
    pipeline.capture(*hours)
    for hour in hours:
        pipeline.refine(hour)


def of_runs(pipeline: Pipeline, *run_ids: str) -> int:
    """How many texts and embeddings there are of runs."""
    return sum(
        len(pipeline.ask(f"SELECT 1 AS x FROM trajectory.{table} WHERE run_id = ANY(%s)", list(run_ids)))
        for table in ("search_texts", "trajectory_embeddings")
    )


def test_erase_deleted_run_removes_its_texts_everywhere(judged: Pipeline) -> None:
    asking, answering = chain(judged)
    hours = sorted({judged.hour_of_run(asking), judged.hour_of_run(answering)})
    say_the_word(judged, asking)
    in_the_sinks(judged, asking, *hours)
    shown = judged.ask("SELECT shown_run_ids FROM trajectory.verdicts WHERE run_id = %s", answering)
    assert shown == [{"shown_run_ids": [asking, answering]}]
    # As context, it was shown for the next runs of the conversation too.
    rows = judged.ask("SELECT run_id FROM trajectory.verdicts WHERE %s = ANY(shown_run_ids)", asking)
    showed = [row["run_id"] for row in rows]
    assert {asking, answering} <= set(showed)
    let_the_judge_say_it(judged, *showed)
    for hour in hours:
        judged.refine(hour)  # reused, and written to Parquet as they are now
    embed(judged, *hours)
    assert of_runs(judged, asking, answering) == 4
    counts = judged.ask(
        "SELECT run_id, step_count, message_count, total_tokens, start_time, end_time, execution_status,"
        " heuristic_outcome, signals ->> 'tool_calls' AS calls, signals ->> 'distinct_tools' AS tools,"
        " signals ->> 'person_messages' AS people FROM trajectory.trajectories ORDER BY 1"
    )
    before = row_of(judged, asking, judged.hour_of_run(asking))
    hour = judged.hour_of_run(asking)
    label(judged, asking, note=f"it says {CANARY}")
    assert places_of_the_word(judged) >= {
        "trajectories",
        "terminal_runs",
        "refined_outcomes",
        "verdicts",
        "labels",
        "search_texts",
    }
    delete_run(judged, asking)
    erasing = replace(judged, deleted="erase")
    assert erasing.read(hour).counts.erased_runs == 1
    (result,) = erasing.capture(hour)
    assert result.erased_verdicts == len(showed)
    assert of_runs(judged, asking, answering) == 0
    assert places_of_the_word(judged) == set()
    embed(judged, *hours)
    assert of_runs(judged, asking) == 0
    assert places_of_the_word(judged) == set()
    after = row_of(judged, asking, hour)
    assert (after["erased"], after["deleted_at"] is not None, after["agent_name"]) == (True, True, None)
    assert {name: after[name] for name in ("run_id", "trajectory_id", "agent_id", "duration_ns", "total_tokens")} == {
        name: before[name] for name in ("run_id", "trajectory_id", "agent_id", "duration_ns", "total_tokens")
    }
    assert counts == judged.ask(
        "SELECT run_id, step_count, message_count, total_tokens, start_time, end_time, execution_status,"
        " heuristic_outcome, signals ->> 'tool_calls' AS calls, signals ->> 'distinct_tools' AS tools,"
        " signals ->> 'person_messages' AS people FROM trajectory.trajectories ORDER BY 1"
    )
    verdicts = judged.ask("SELECT erased, outcome, cost_usd, summary FROM trajectory.verdicts WHERE erased")
    assert len(verdicts) == len(showed)
    assert all(row["cost_usd"] is not None and row["summary"] is None for row in verdicts)
    assert reconcile_partition(hour, judged.storage).differences == ()


def label(pipeline: Pipeline, run_id: str, note: str) -> None:
    """Label a run by its outcome and by a requirement, with the same note and statement."""
    given: dict[str, Any] = {"run_id": run_id, "annotator": "ann", "source": LabelSource.TERMINAL, "note": note}
    outcome = Label(criterion=Criterion.OUTCOME, value="failure", **given)
    item = requirement_item(note)
    requirement = Label(criterion=Criterion.REQUIREMENT, value="unmet", statement=note, item=item, **given)
    write_labels(pipeline.storage.postgres, [outcome, requirement])


def test_erase_keeps_labels_and_later_notes(judged: Pipeline) -> None:
    judged.capture(HOUR)
    run_id = some_run(judged)
    label(judged, run_id, note=CANARY)
    delete_run(judged, run_id)
    erasing = replace(judged, deleted="erase")
    erasing.capture(HOUR)
    labels = "SELECT criterion, value, note, statement FROM trajectory.labels WHERE superseded_at IS NULL ORDER BY 1"
    assert judged.ask(labels) == [
        {"criterion": "outcome", "value": "failure", "note": None, "statement": None},
        {"criterion": "requirement", "value": "unmet", "note": None, "statement": None},
    ]
    label(judged, run_id, note="nothing is left of it")
    erasing.capture(HOUR)
    assert [row["note"] for row in judged.ask(labels)] == ["nothing is left of it"] * 2


def test_erase_repeated_changes_nothing(judged: Pipeline) -> None:
    judged.capture(HOUR)
    delete_run(judged, some_run(judged))
    erasing = replace(judged, deleted="erase")
    erasing.capture(HOUR)
    files, rows = judged.files(), judged.ask("SELECT * FROM trajectory.trajectories ORDER BY run_id")
    erasing.capture(HOUR)
    erase_partition(HOUR, judged.storage)
    assert judged.files() == files
    assert judged.ask("SELECT * FROM trajectory.trajectories ORDER BY run_id") == rows


def test_erase_deleted_message_removes_only_its_texts(judged: Pipeline) -> None:
    judged.capture(HOUR)
    judged.refine(HOUR)
    run_id = some_run(judged)
    judged.change_source(
        f'UPDATE messages SET is_deleted = true, content = \'[{{"type": "text", "text": "{CANARY}"}}]\''
        f" WHERE id = (SELECT id FROM messages WHERE run_id = '{run_id}' AND role = 'assistant' ORDER BY sequence_id"
        " LIMIT 1)"
    )
    judged.capture(HOUR)
    judged.refine(HOUR)
    let_the_judge_say_it(judged, run_id)
    stored = row_of(judged, run_id)
    others = [row for row in judged.parquet(TRAJECTORIES, HOUR) if row["run_id"] != run_id]
    assert "trajectories" in places_of_the_word(judged)
    (result,) = replace(judged, deleted="erase").capture(HOUR)
    assert result.erased_verdicts > 0
    assert places_of_the_word(judged) == set()
    after = row_of(judged, run_id)
    assert (after["erased"], after["deleted_at"], after["message_count"]) == (True, None, stored["message_count"])
    assert [row for row in judged.parquet(TRAJECTORIES, HOUR) if row["run_id"] != run_id] == others
    messages = [message for turn in after["turns"] for message in turn["messages"]]
    words = {
        flag: [part["text"] for message in messages if message["is_deleted"] is flag for part in message["content"]]
        for flag in (True, False)
    }
    assert words[True] == ["[erased]"]
    assert set(words[False]) - {None, "[erased]"}


def test_erase_verdict_on_remaining_content_keeps_its_texts(judged: Pipeline) -> None:
    judged.capture(HOUR)
    run_id = some_run(judged)
    judged.change_source(
        "UPDATE messages SET is_deleted = true WHERE id ="
        f" (SELECT min(id) FROM messages WHERE run_id = '{run_id}' AND role = 'assistant')"
    )
    erasing = replace(judged, deleted="erase")
    erasing.capture(HOUR)
    judged.refine(HOUR)
    before = judged.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id)
    assert before[0]["summary"]
    embed(judged, HOUR)
    stored = of_runs(judged, run_id)
    (result,) = erasing.capture(HOUR)
    assert (result.erased_verdicts, judged.refine(HOUR).calls) == (0, 0)
    assert judged.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id) == before
    assert of_runs(judged, run_id) == stored == 2


def test_erase_verdict_stored_afterwards_loses_its_texts(judged: Pipeline) -> None:
    """It was being reached while the run was erased, and was stored afterwards."""
    judged.capture(HOUR)
    judged.refine(HOUR)
    run_id = some_run(judged)
    (verdict,) = judged.ask("SELECT * FROM trajectory.verdicts WHERE run_id = %s", run_id)
    delete_run(judged, run_id)
    replace(judged, deleted="erase").capture(HOUR)
    judged.do(
        f"UPDATE trajectory.verdicts SET summary = '{CANARY}', erased = false WHERE run_id = '{run_id}'",
        # As made from it in the meantime.
        "INSERT INTO trajectory.search_texts (run_id, partition_key, text, rendering_version, text_digest,"
        " content_digest, verdict_key, rendered_at) SELECT run_id, partition_key, summary, '1', 'x', content_digest,"
        f" verdict_key, now() FROM trajectory.verdicts WHERE run_id = '{run_id}'",
    )
    judged.refine(HOUR)
    assert places_of_the_word(judged) == set()
    assert verdict["summary"] is not None


def test_erase_deleted_quarantined_run_removes_its_texts(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    run_id = some_run(pipeline)
    pipeline.change_source(
        f"UPDATE messages SET content = '{{\"{CANARY}\": 1}}' WHERE id = (SELECT min(id) FROM messages"
        f" WHERE run_id = '{run_id}')"
    )
    (result,) = pipeline.capture(HOUR)
    assert [run.run_id for run in result.quarantined] == [run_id]
    assert "quarantine" in places_of_the_word(pipeline)
    delete_run(pipeline, run_id)
    replace(pipeline, deleted="erase").capture(HOUR)
    assert places_of_the_word(pipeline) == set()


def test_erase_reappearing_run_regains_texts_and_verdict(judged: Pipeline) -> None:
    judged.capture(HOUR)
    judged.refine(HOUR)
    run_id = some_run(judged)
    before = row_of(judged, run_id)
    summaries = judged.ask("SELECT summary FROM trajectory.verdicts WHERE run_id = %s", run_id)
    tables = ("runs", "run_metrics", "steps", "step_metrics", "messages")
    judged.change_source(*(f"CREATE TABLE saved_{table} AS TABLE {table}" for table in tables))
    delete_run(judged, run_id)
    erasing = replace(judged, deleted="erase")
    erasing.capture(HOUR)
    assert row_of(judged, run_id)["erased"]
    judged.change_source(*(f"INSERT INTO {t} SELECT * FROM saved_{t} ON CONFLICT DO NOTHING" for t in tables))
    erasing.capture(HOUR)
    judged.refine(HOUR)
    assert row_of(judged, run_id) == before
    assert judged.ask("SELECT summary FROM trajectory.verdicts WHERE run_id = %s", run_id) == summaries


def test_erase_setting_makes_only_deleted_content_stale(pipeline: Pipeline) -> None:
    pipeline.capture(HOUR)
    source = LettaSource(pipeline.letta_url)
    delete_run(pipeline, some_run(pipeline))
    pipeline.capture(HOUR)
    assert find_stale_partitions(source, pipeline.database, [HOUR]) == []
    assert find_stale_partitions(source, pipeline.database, [HOUR], "erase") == [HOUR]
    replace(pipeline, deleted="erase").capture(HOUR)
    assert find_stale_partitions(source, pipeline.database, [HOUR], "erase") == []


def test_erase_partition_needs_no_source(judged: Pipeline) -> None:
    judged.capture(HOUR)
    run_id = some_run(judged)
    say_the_word(judged, run_id)
    judged.capture(HOUR)
    judged.refine(HOUR)
    let_the_judge_say_it(judged, run_id)
    delete_run(judged, run_id)
    judged.capture(HOUR)
    assert partitions_to_erase(judged.database) == {partition_key(HOUR): 1}
    no_source = replace(judged, letta_url="postgresql://nobody@127.0.0.1:1/letta")
    result = erase_partition(HOUR, no_source.storage)
    assert result.row_balance.balanced
    assert places_of_the_word(judged) == set()
    assert partitions_to_erase(judged.database) == {}
    assert find_stale_partitions(LettaSource(judged.letta_url), judged.database, [HOUR], "erase") == []


def test_erase_crash_during_verdicts_is_completed_next_time(judged: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    judged.capture(HOUR)
    run_id = some_run(judged)
    judged.refine(HOUR)
    let_the_judge_say_it(judged, run_id)
    judged.refine(HOUR)
    delete_run(judged, run_id)
    erasing = replace(judged, deleted="erase")
    with monkeypatch.context() as patch:
        patch.setattr(
            "trajectory_pipeline.pipeline.erased_verdicts._rewrite", lambda *_: (_ for _ in ()).throw(OSError)
        )
        with pytest.raises(OSError, match=r"^$"):
            erasing.capture(HOUR)
    source = LettaSource(judged.letta_url)
    assert find_stale_partitions(source, judged.database, [HOUR], "erase") == [HOUR]
    erasing.capture(HOUR)
    assert places_of_the_word(judged) == set()


def test_erased_columns_are_nullable() -> None:
    for table, retained in ((VERDICTS, RETAINED_VERDICT_COLUMNS), (VERDICT_ATTEMPTS, RETAINED_ATTEMPT_COLUMNS)):
        columns = {column.name: column for column in table.columns}
        assert retained <= set(columns)
        assert all(columns[name].nullable for name in erasable_columns(table, retained))
    assert "summary" in REFINED_OUTCOMES.names(Sink.PARQUET)
    assert "erased" in TERMINAL_RUNS.names(Sink.PARQUET)


def test_erased_run_of_the_conversation_reaches_later_verdicts(judged: Pipeline) -> None:
    hours = sorted(sample_partitions())
    judged.capture(*hours)
    pairs = judged.ask(
        "SELECT a.run_id AS earlier, b.run_id AS later FROM trajectory.trajectories a JOIN trajectory.trajectories b"
        " ON b.conversation_id = a.conversation_id AND a.end_time <= b.start_time AND b.continues_run_id IS NULL"
        " WHERE a.message_count > 1 AND b.message_count > 1 AND a.continues_run_id IS NULL ORDER BY 1, 2 LIMIT 1"
    )
    earlier, later = pairs[0]["earlier"], pairs[0]["later"]
    say_the_word(judged, earlier)
    hour, of_later = judged.hour_of_run(earlier), judged.hour_of_run(later)
    judged.capture(hour)
    for each in {hour, of_later}:
        judged.refine(each)
    (shown,) = judged.ask("SELECT shown_run_ids FROM trajectory.verdicts WHERE run_id = %s", later)
    assert shown["shown_run_ids"][-1] == later
    assert earlier in shown["shown_run_ids"]
    let_the_judge_say_it(judged, later)
    delete_run(judged, earlier)
    replace(judged, deleted="erase").capture(hour)
    assert places_of_the_word(judged) == set()
    (verdict,) = judged.ask(
        "SELECT erased, summary, context_coverage FROM trajectory.verdicts WHERE run_id = %s", later
    )
    assert (verdict["erased"], verdict["summary"]) == (True, None)
    assert verdict["context_coverage"]["earlier_runs"]["count"] >= 1
    judged.refine(of_later)
    (renewed, _) = judged.ask(
        "SELECT erased, shown_run_ids FROM trajectory.verdicts WHERE run_id = %s ORDER BY erased", later
    )
    assert not renewed["erased"]
    assert earlier not in renewed["shown_run_ids"]
