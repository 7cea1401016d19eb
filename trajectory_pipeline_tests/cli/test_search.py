"""The command ``search`` prints runs with outcome and lesson, successes beside failures, and JSON."""

import json

import psycopg
import pytest

from trajectory_pipeline.cli import console
from trajectory_pipeline.pipeline.local_embedder import LocalEmbedder
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.storage.postgres.searchable import Run, add_policy, add_runs

LESSON = "cite the rule\x1b]0;title\x07"
"""With a control sequence for the terminal of whoever searches."""


NAMED = ("--agent", "--organization", "--project", "--source", "--tool", "--model", "--failure-mode", "--tag")


@pytest.fixture
def variables(databases: dict[str, str]) -> dict[str, str]:
    """Databases with three runs, two of them judged."""
    runs = [
        Run("run-1", "refund of a late parcel", judged_outcome="failure", lesson="look up the order first"),
        Run("run-2", "refund of a late parcel", judged_outcome="success", lesson=LESSON),
        Run("run-3", "change of an address", agent_id="agent-b", heuristic_outcome="unknown"),
    ]
    with psycopg.connect(databases["TRAJECTORY_DATABASE_URL"]) as connection:
        add_policy(connection)
        add_runs(connection, runs)
    return databases


def test_runs_are_printed_with_outcome_and_lesson(run_command: Command, variables: dict[str, str]) -> None:
    result = run_command("search", "late parcel", "--outcome", "failure", **variables)
    assert result.exit_code == 0
    assert "run-1" in result.output
    assert "run-2" not in result.output
    assert "Lesson: look up the order first" in result.output
    assert "TRAJECTORY_EMBEDDING_MODEL" in result.output, "says why nothing is searched by meaning"


def test_control_sequences_of_agents_do_not_reach_the_terminal(run_command: Command, variables: dict[str, str]) -> None:
    result = run_command("search", "late parcel", "--outcome", "success", **variables)
    assert "\\x1b" in result.output
    assert "\x1b" not in result.output


def test_a_run_without_a_verdict_says_that_its_outcome_is_by_rule(
    run_command: Command, variables: dict[str, str]
) -> None:
    result = run_command("search", "address", "--mode", "words", "--agent", "agent-b", **variables)
    assert "by rule" in result.output
    assert "By words only" not in result.output


def test_a_contrast_as_json_has_both_sides(run_command: Command, variables: dict[str, str]) -> None:
    result = run_command("search", "late parcel", "--contrast", "--json", **variables)
    found = json.loads(result.stdout)
    assert [(hit["run_id"], hit["lesson"]) for hit in found["successes"]] == [("run-2", LESSON)]
    assert [(hit["run_id"], hit["judged_outcome"]) for hit in found["failures"]] == [("run-1", "failure")]
    assert "TRAJECTORY_EMBEDDING_MODEL" in found["words_only"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_ids_are_whole_on_a_narrow_terminal(
    run_command: Command, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    long = Run("run-e7802658-9624-43b0-b11e-a47969ef2839", "refund of a late parcel", judged_outcome="success")
    with psycopg.connect(variables["TRAJECTORY_DATABASE_URL"]) as connection:
        add_runs(connection, [long])
    monkeypatch.setattr(console.out, "width", width)
    assert long.run_id in run_command("search", "late parcel", **variables).output
    shown = run_command("show", long.run_id, **variables).output
    assert width == 40 or long.run_id in shown
    assert "…" not in shown


def test_nothing_found_is_said(run_command: Command, variables: dict[str, str]) -> None:
    output = run_command("search", "zebra", **variables).output
    assert "None was found" in output
    assert "no search text" not in output


def test_database_without_search_texts_is_named(run_command: Command, databases: dict[str, str]) -> None:
    result = run_command("search", "zebra", **databases)
    assert "holds no search text: materialize trajectory_embeddings" in squeezed(result)
    as_json = run_command("search", "zebra", "--json", **databases)
    assert json.loads(as_json.stdout)["runs"] == []
    assert "holds no search text" in as_json.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("",), "The query is empty"),
        (("-refund",), "No such option"),
        (("x", "--mode", "meaning"), "TRAJECTORY_EMBEDDING_MODEL"),
        (("x", "--from", "yesterday"), "yesterday"),
        (("x", "--from", "2026-11-02", "--to", "2026-11-02"), "must be before --completed-to (2026-11-02)"),
        (("refund", "--family", "nope"), "No run has --family nope"),
        (("refund", "--agent", "agent-b", "--agent", "nope", "--tag", "no"), "No run has --agent nope and --tag no"),
        *((("refund", option, "nope"), f"No run has {option} nope") for option in NAMED),
        (("x", "--contrast", "--outcome", "failure"), "outcomes of its own"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(
    run_command: Command, variables: dict[str, str], arguments: tuple[str, ...], said: str
) -> None:
    result = run_command("search", *arguments, **variables)
    assert result.exit_code == 2
    assert said in result.output


def test_with_the_local_model_runs_are_found_by_meaning(run_command: Command, variables: dict[str, str]) -> None:
    embedder = LocalEmbedder()
    with psycopg.connect(variables["TRAJECTORY_DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO trajectory.embedding_models (model_id, name, dimensions, is_current, created_at)"
            " VALUES (%s, 'wordllama', 256, true, now())",
            [embedder.model.model_id],
        )
        vector = [1.0, *[0.0] * 255]
        add_runs(connection, [Run("run-4", "zebra", vector, model_id=embedder.model.model_id)])
    result = run_command(
        "search", "horse", "--mode", "meaning", "--json", TRAJECTORY_EMBEDDING_MODEL="wordllama", **variables
    )
    found = json.loads(result.stdout)
    (hit,) = found["runs"]
    assert found["remark"] is None, "words were not searched"
    said = run_command("search", "horse", TRAJECTORY_EMBEDDING_MODEL="wordllama", **variables)
    assert "No run that was found has a word of the query" in squeezed(said)
    assert (hit["run_id"], hit["meaning_rank"]) == ("run-4", 1)
