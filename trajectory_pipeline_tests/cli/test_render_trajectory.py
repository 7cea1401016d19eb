"""The commands ``show`` and ``explain``: readable output whatever the text holds, and never a traceback.

One hour of real rows, some of them changed so that their text is hard on a terminal; captured and judged once.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from trajectory_pipeline.demo.simulated_judge import SimulatedJudge
from trajectory_pipeline.letta.snapshot import LettaSource
from trajectory_pipeline.pipeline.capture import materialize_terminal_runs
from trajectory_pipeline.pipeline.configured_models import judge_config
from trajectory_pipeline.pipeline.convert import materialize_trajectories
from trajectory_pipeline.pipeline.judge import JudgingRun
from trajectory_pipeline.settings import Settings
from trajectory_pipeline.storage.storage import Storage
from trajectory_pipeline_tests.cli.conftest import Command, squeezed
from trajectory_pipeline_tests.conftest import with_judge
from trajectory_pipeline_tests.defs.dagster_runs import execute

HOUR = datetime(2026, 11, 20, 14, tzinfo=UTC)
WITH_TOOLS = "run-da1b4fdd-af73-40f8-8cab-2d04890f0fb5"
ASKS = "run-126622ec-d568-40ac-a232-040586f2fa12"
ANSWERS = "run-d93f2d64-ee0a-4c5c-a5a3-fc05c14679a4"
FAILED = "run-21f81e8d-194f-4dc2-b8e1-f3b2682b206c"
WITHOUT_STEPS = "run-1393af82-490b-48c1-b693-1faec0b5b649"
HARD = "run-2ebd31f5-1467-4a86-b3b8-0335e0805c92"
QUARANTINED = "run-6261dc0f-0229-40fc-b4a3-8cbd67c88472"

HARD_TEXT = r"[bold]not bold[/bold] [/nothing] [link=x] \ud83d \u001b[31mred \u0007 \u0000 \u009b2J line\r\nnext 👩‍🔬"


@pytest.fixture(scope="module")
def shown(make_own_settings: Callable[[], Settings], running_judge: SimulatedJudge) -> Settings:
    settings = with_judge(make_own_settings(), running_judge)
    execute(
        str(settings.source.postgres_url),
        f"""UPDATE messages SET content = '[{{"type": "text", "text": "{HARD_TEXT}"}}]' WHERE run_id = '{HARD}'""",
        f"UPDATE messages SET content = '17' WHERE run_id = '{QUARANTINED}'",
    )
    source = LettaSource(str(settings.source.postgres_url))
    storage = Storage.at(settings.storage.parquet_location, str(settings.storage.database_url))
    materialize_terminal_runs(HOUR, source, storage)
    materialize_trajectories(HOUR, storage)
    judging = JudgingRun(storage, judge_config(settings.judge, settings.privacy, settings.budget))
    judging.judge_partitions([HOUR])
    judging.publish(HOUR)
    return settings


Show = Callable[[str], str]


@pytest.fixture
def show(run_command: Command, shown: Settings) -> Show:
    def printed(run_id: str) -> str:
        result = run_command("show", run_id, **databases_of(shown))
        assert result.exit_code == 0, result.output
        return result.output

    return printed


def databases_of(settings: Settings) -> dict[str, str]:
    url = str(settings.storage.database_url)
    return {"TRAJECTORY_DATABASE_URL": url, "LETTA_PG_URI": url, "DAGSTER_PG_URL": url}


def test_show_run_with_tools_prints_head_turns_and_verdict(show: Show) -> None:
    text = show(WITH_TOOLS)
    assert show(WITH_TOOLS) == text
    assert text.splitlines()[0].startswith("╭─ Run ─")
    lines = [" ".join(line.strip("│").split()) for line in text.splitlines()]
    assert f"run {WITH_TOOLS}" in lines
    assert "ended completed, stop reason end_turn" in lines
    assert "size 4 steps, 8 messages" in lines
    assert "partition 2026-11-20-14:00" in lines
    assert [line for line in lines if re.fullmatch(r"time 2026-11-20 14:.*\+00:00 → .*\(\d+\.\d{3} s\)", line)]
    assert [line.split(" · ")[0] for line in lines if line.startswith("Turn ")] == [f"Turn {n}" for n in range(1, 5)]
    assert [line for line in lines if line.startswith("→ ")]
    assert [line for line in lines if line.startswith("← success: ")]
    assert "Execution completed" in lines
    assert [line for line in lines if line.startswith("Heuristic outcome success (confidence 0.8): ")]
    [verdict] = [line for line in lines if "Verdict: " in line]
    assert "simulated-judge — a simulation, not a model" in verdict


def test_show_run_awaiting_approval_names_the_answering_run(show: Show) -> None:
    text = " ".join(show(ASKS).split())
    assert "Execution awaiting_approval" in text
    assert f"continued by {ANSWERS}" in text


def test_show_answering_run_names_the_asking_run_and_step(show: Show) -> None:
    text = " ".join(show(ANSWERS).split())
    assert f"continues {ASKS}" in text
    assert f" of {ASKS} " in text
    assert re.search(r"\b(approved|denied|returned by the client) read_local_file call", text)
    assert "tools requested - │ │ tools used read_local_file │ │ tools denied -" in text


def test_show_failed_run_prints_its_error(show: Show) -> None:
    text = " ".join(show(FAILED).split())
    assert re.search(r"Execution failed, cause \w+ Heuristic outcome failure \(confidence 0.9\): ", text)
    assert re.search(r" Error \w+", text)


def test_show_run_without_steps_or_messages_succeeds(show: Show) -> None:
    text = " ".join(show(WITHOUT_STEPS).split())
    assert "0 steps, 0 messages" in text
    assert "Turn 1" not in text
    assert "Verdict: not_eligible" in text


def test_show_text_with_markup_prints_it_unchanged(show: Show) -> None:
    assert "[bold]not bold[/bold] [/nothing] [link=x]" in show(HARD)


def test_show_text_with_control_characters_escapes_them(show: Show) -> None:
    """An agent's text is not ours: what it read on some page must not clear a screen or retitle a window."""
    text = show(HARD)
    assert not [character for character in text if ord(character) < 32 and character != "\n"]
    assert not [character for character in text if 0x7F <= ord(character) < 0xA0]
    assert r"\ud83d \x1b[31mred \x07 \u0000 \x9b2J line" in text
    assert "next 👩‍🔬" in text


def test_show_quarantined_run_says_why(run_command: Command, shown: Settings) -> None:
    result = run_command("show", QUARANTINED, **databases_of(shown))
    assert result.exit_code == 2
    message = squeezed(result)
    assert re.match(
        rf"Error: {QUARANTINED} has been in quarantine since \d{{4}}-\d\d-\d\d \d\d:\d\d UTC: messages\[", message
    )


@pytest.mark.parametrize("run_id", ["run-none", "'; DROP TABLE x; --", "[bold]", "ü", "%s", " "])
def test_show_unknown_run_names_the_database(run_command: Command, shown: Settings, run_id: str) -> None:
    result = run_command("show", run_id, **databases_of(shown))
    assert result.exit_code == 2
    message = squeezed(result)
    assert message.startswith("Error: There is no trajectory of ")
    assert repr(run_id).strip() in result.output
    assert "in 127.0.0.1:" in message
    assert "or materialize the hour in which the run ended." in message


def test_show_run_without_verdict_says_so(show: Show, shown: Settings, run_command: Command) -> None:
    execute(str(shown.storage.database_url), f"DELETE FROM trajectory.verdicts WHERE run_id = '{FAILED}'")
    assert "Verdict none under the current policy" in " ".join(show(FAILED).split())


def test_show_run_without_document_says_why(show: Show, shown: Settings) -> None:
    execute(
        str(shown.storage.database_url),
        "UPDATE trajectory.trajectories SET data = NULL, data_omitted_reason = 'too deep for jsonb'"
        f" WHERE run_id = '{WITHOUT_STEPS}'",
    )
    assert "The document is not in Postgres: too deep for jsonb. Parquet has all of it." in " ".join(
        show(WITHOUT_STEPS).split()
    )


def test_show_deleted_run_says_when_it_was_noticed(show: Show, shown: Settings) -> None:
    execute(
        str(shown.storage.database_url),
        f"UPDATE trajectory.trajectories SET deleted_at = '2026-11-21 09:00+00' WHERE run_id = '{ANSWERS}'",
    )
    assert "deleted gone from the source, noticed 2026-11-21 09:00:00+00:00" in " ".join(
        show(ANSWERS).replace("│", " ").split()
    )


# ---- explain ------------------------------------------------------------------------------------------------------


def test_explain_prints_source_prompt_answer_and_checks(run_command: Command, shown: Settings) -> None:
    files = {"TRAJECTORY_STORAGE_URI": shown.storage.parquet_location}
    result = run_command("explain", WITH_TOOLS, **databases_of(shown), **files)
    assert result.exit_code == 0, result.output
    text = squeezed(result)
    for part in (
        "in the source now: ",
        "as captured: ",
        "heuristic outcome: ",
        "Rendered and redacted again",
        "because: ",
    ):
        assert part in text
    assert "identical to what was judged" in text
    assert re.search(r"\[[0-9a-f]{4,}\] user ", text)
    assert "✓ “" in text


def test_explain_compares_captured_rows_with_the_source(run_command: Command, shown: Settings) -> None:
    places = {
        **databases_of(shown),
        "LETTA_PG_URI": str(shown.source.postgres_url),
        "TRAJECTORY_STORAGE_URI": shown.storage.parquet_location,
    }

    def explanation() -> dict[str, Any]:
        parts: dict[str, Any] = json.loads(run_command("explain", WITH_TOOLS, "--json", **places).output)
        return parts

    before = explanation()
    assert before["captured"] == before["source"]
    assert before["shown"]["same_as_judged"] is True
    assert before["captured"]["id"] == WITH_TOOLS
    assert before["captured"]["messages"] == before["trajectory"]["message_count"]
    execute(
        str(shown.source.postgres_url),
        f"DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE run_id = '{WITH_TOOLS}')",
        f"UPDATE runs SET stop_reason = 'cancelled' WHERE id = '{WITH_TOOLS}'",
    )
    after = explanation()
    assert after["captured"] == before["captured"]
    assert after["source"]["messages"] == before["source"]["messages"] - 1
    assert (before["source"]["stop_reason"], after["source"]["stop_reason"]) == ("end_turn", "cancelled")


def test_explain_json_has_every_part_and_names_missing_ones(run_command: Command, shown: Settings) -> None:
    explanation = json.loads(run_command("explain", WITH_TOOLS, "--json", **databases_of(shown)).output)
    # Neither is here: the command is shown other places than the ones that the rows came from.
    assert "the source was not read" in explanation["source"]["missing"]
    assert "materialize terminal_runs" in explanation["captured"]["missing"]
    assert "is not in Parquet as Postgres has it: materialize trajectories of" in explanation["shown"]["missing"]
    assert explanation["verdict"]["attempts"] == len(explanation["attempts"]) == 1
    silent = run_command("explain", "run-of-nowhere", **databases_of(shown))
    assert (silent.exit_code, "There is no trajectory of 'run-of-nowhere'" in squeezed(silent)) == (2, True)
