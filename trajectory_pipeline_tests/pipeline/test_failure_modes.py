"""The registry of failure modes over stored runs: ids that stay, texts that are redacted and erased, and alarms."""

from datetime import UTC, datetime, timedelta

from trajectory_pipeline.judge.redaction.redactor import Redactor
from trajectory_pipeline.pipeline.failure_modes import find_growing_modes, update_failure_modes
from trajectory_pipeline.storage.postgres.failure_modes import failures_by_week, forget_failure_titles
from trajectory_pipeline_tests.pipeline.materializing import Pipeline

REDACT = Redactor(key=b"a key of these tests")
SECRET = "sk-proj-Zq8vN2xT5bW9yL4mR7cK1dF6gH3jP0sA"
_RUNS = "SELECT run_id, mode_id, text_sha256, kind, source FROM trajectory.failure_mode_runs ORDER BY 1, 2, 3"
_MODES = "SELECT mode_id, kind, title, position FROM trajectory.failure_modes ORDER BY position"


def execute(pipeline: Pipeline, statement: str, *parameters: object) -> None:
    with pipeline.database.connect() as connection:
        connection.execute(statement.encode(), parameters)


def update(pipeline: Pipeline) -> int:
    return update_failure_modes(pipeline.database, REDACT)


def test_update_twice_changes_nothing(own_story: Pipeline) -> None:
    assert update(own_story) > 10
    modes, runs = own_story.ask(_MODES), own_story.ask(_RUNS)
    assert update(own_story) == 0
    assert (own_story.ask(_MODES), own_story.ask(_RUNS)) == (modes, runs)


def test_update_seeds_the_closed_list(own_story: Pipeline) -> None:
    update(own_story)
    listed = own_story.ask("SELECT mode_id FROM trajectory.failure_modes WHERE kind = 'listed'")
    assert {row["mode_id"] for row in listed} > {"hallucination", "timeout", "other"}
    judged = own_story.ask(
        "SELECT failure_mode AS mode_id, count(*) AS runs FROM trajectory.outcomes"
        " WHERE failure_mode <> 'none' GROUP BY 1 ORDER BY 1"
    )
    counted = own_story.ask(
        "SELECT mode_id, sum(runs)::bigint AS runs FROM trajectory.failure_mode_weeks WHERE kind = 'listed'"
        " GROUP BY 1 ORDER BY 1"
    )
    assert counted == judged


def test_update_groups_equal_errors_of_a_tool(own_story: Pipeline) -> None:
    update(own_story)
    groups = [row for row in failures_by_week(own_story.database, None, None, 2) if row["kind"] == "tool_error"]
    assert sorted(row["title"] for row in groups) == [
        "assign_stop: ValueError: Goran has 18 stops already",
        "issue_refund: ConnectionError: payments gateway answered 503 Service Unavailable",
        "replace_in_file: ValueError: old text occurs 0 times in parcelkit/pricing.py, expected once",
        "run_sql: OperationalError: no such column: delayed",
        "van_status: TimeoutError: telematics did not answer within 10 s",
    ]
    assert [(row["runs"], row["weeks"]) for row in groups] == [(2, [{"week": "2026-11-23", "runs": 2}])] * 5


def test_ids_stay_when_runs_come_in_other_batches(own_story: Pipeline) -> None:
    """The younger half of the runs comes first, then the others: no group of the first is renumbered."""
    execute(own_story, "UPDATE trajectory.trajectories SET deleted_at = now() WHERE end_time < '2026-11-24T09:00Z'")
    update(own_story)
    before = {(row["run_id"], row["text_sha256"]): row["mode_id"] for row in own_story.ask(_RUNS)}
    modes = own_story.ask(_MODES)
    execute(own_story, "UPDATE trajectory.trajectories SET deleted_at = NULL")
    assert update(own_story) > 0
    after = {(row["run_id"], row["text_sha256"]): row["mode_id"] for row in own_story.ask(_RUNS)}
    assert after.items() > before.items()
    assert own_story.ask(_MODES)[: len(modes)] == modes


def test_update_redacts_texts(own_story: Pipeline) -> None:
    execute(
        own_story,
        "UPDATE trajectory.verdicts SET lesson = %s WHERE failure_mode = 'hallucination'",
        f"Never print the api_key={SECRET} again.",
    )
    update(own_story)
    titles = [str(row["title"]) for row in own_story.ask(_MODES)]
    assert not any(SECRET in title for title in titles)
    assert any("Never print the" in title for title in titles)


def test_title_of_an_erased_run_is_taken_from_another_one(own_story: Pipeline) -> None:
    update(own_story)
    group = next(row for row in failures_by_week(own_story.database, None, None, 2) if row["kind"] == "tool_error")
    (first,) = own_story.ask("SELECT * FROM trajectory.failure_modes WHERE mode_id = %s", group["mode_id"])
    erase = "UPDATE trajectory.trajectories SET erased = true, deleted_at = now() WHERE run_id = %s"
    execute(own_story, erase, first["first_run_id"])
    with own_story.database.connect() as connection:
        forget_failure_titles(connection)
    (erased,) = own_story.ask("SELECT * FROM trajectory.failure_modes WHERE mode_id = %s", group["mode_id"])
    assert (erased["title"], erased["first_run_id"]) == (None, None)
    update(own_story)
    (again,) = own_story.ask("SELECT * FROM trajectory.failure_modes WHERE mode_id = %s", group["mode_id"])
    assert again["title"] is not None
    assert again["first_run_id"] not in (None, first["first_run_id"])
    assert again["position"] == first["position"]
    (now,) = (row for row in failures_by_week(own_story.database, None, None, 1) if row["mode_id"] == group["mode_id"])
    assert now["runs"] == group["runs"] - 1


def test_superseded_verdict_leaves_its_group(own_story: Pipeline) -> None:
    update(own_story)
    execute(
        own_story,
        "UPDATE trajectory.verdicts SET failure_mode = 'timeout', verdict_key = verdict_key || 'x'"
        " WHERE failure_mode = 'hallucination'",
    )
    update(own_story)
    counted = own_story.ask("SELECT mode_id FROM trajectory.failure_mode_weeks WHERE kind = 'listed'")
    assert "hallucination" not in {row["mode_id"] for row in counted}
    assert "timeout" in {row["mode_id"] for row in counted}


def test_growing_modes_name_a_mode_that_was_not_there_before(own_story: Pipeline) -> None:
    """The story's runs are spread over five weeks; in the last one, 20 runs fail in one mode."""
    end = datetime(2026, 12, 1, tzinfo=UTC)
    execute(
        own_story,
        "UPDATE trajectory.trajectories t SET end_time = %s - (n.place * interval '35 days' / 153)"
        " FROM (SELECT run_id, row_number() OVER (ORDER BY run_id) AS place FROM trajectory.trajectories) n"
        " WHERE n.run_id = t.run_id",
        end,
    )
    update(own_story)
    grown, runs = find_growing_modes(own_story.database, end)
    assert not grown
    assert sum(runs) == 152
    execute(
        own_story,
        "UPDATE trajectory.verdicts v SET failure_mode = 'rate_limit', verdict_key = verdict_key || 'x'"
        " FROM trajectory.trajectories t WHERE t.run_id = v.run_id AND t.end_time >= %s AND v.outcome IS NOT NULL",
        end - timedelta(days=6),
    )
    update(own_story)
    grown, _ = find_growing_modes(own_story.database, end)
    (found,) = (one for one in grown if one.growth.mode_id == "rate_limit")
    assert (found.title, found.growth.new) == ("rate_limit", True)
