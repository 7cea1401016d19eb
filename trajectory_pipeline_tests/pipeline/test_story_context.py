"""What the labels of the demonstration depend on beside the run itself stands in the prompt that its judge is sent."""

import pytest

from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, label_records
from trajectory_pipeline.judge.judge_trajectory import JudgeRequest, build_judge_request
from trajectory_pipeline.judge.transcript.context import TaskContext
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline.agent_contexts import AgentContexts
from trajectory_pipeline.pipeline.documents import shown_documents
from trajectory_pipeline.schema.enums import JudgeOrder
from trajectory_pipeline.storage.postgres.verdict_status import judging_candidates
from trajectory_pipeline.storage.postgres.verdicts import open_verdicts
from trajectory_pipeline_tests.pipeline.materializing import Pipeline


@pytest.fixture(scope="module")
def requests(story: Pipeline) -> dict[str, JudgeRequest]:
    """By the key of the label: what the judge is shown of each run."""
    keys = [partition_key(story.hour_of_run(run_id)) for run_id in label_records(FIRST_ANNOTATOR)]
    with open_verdicts(story.database) as verdicts:
        candidates = judging_candidates(verdicts.connection, story.policy.policy_id, keys, JudgeOrder.NEWEST)
        contexts = AgentContexts(story.store, candidates)
        found = {}
        for one in candidates:
            rows = verdicts.documents(one.task_run_ids)
            spoken = verdicts.spoken_documents(one.conversation_run_ids)
            documents = shown_documents(one.task_run_ids, one.partition_key, rows, story.store)
            earlier = shown_documents(one.conversation_run_ids, one.partition_key, spoken, story.store)
            context = TaskContext(contexts.of(one), earlier)
            key = label_records(FIRST_ANNOTATOR)[one.run_id]["key"]
            found[key] = build_judge_request(documents, story.policy, context=context)
    return found


IN_INSTRUCTIONS = {
    **dict.fromkeys(("rl-solberg-b", "rl-nand-b", "ac-tanabe"), "do what you say with the tools"),
    "pv-courier": "never promise what a rule does not give",
    "lr-count": "A parcel rate is late / parcels in percent",
    "iv-total-b": "Overdue means unpaid and due before today",
    **dict.fromkeys(("cf-config", "cf-config-b"), "Never repeat secrets"),
    **dict.fromkeys(("tp-quill-1", "tp-margin-1", "tp-margin-2"), "rooms up to 100 EUR a night"),
    "hb-lithium-b": "Search the handbook before you state a rule",
}
IN_MEMORY = {
    **dict.fromkeys(("tp-salt-1", "tp-salt-2"), "No shared bathrooms"),
    **dict.fromkeys(("tp-train-ok", "tp-train-early", "tp-week"), "Prefers trains after 07:00"),
}
IN_EARLIER_RUN = {
    "rl-marten-2": "rl-marten",
    "rl-wiek-2": "rl-wiek",
    "rl-solberg-2": "rl-solberg",
    "ac-brill-2": "ac-brill-1",
    "tr-castell-2": "tr-castell",
    "dm-castell": "tr-castell-2",
    "lr-worst-2": "lr-worst",
    "lr-count-2": "lr-count",
    "nw-euro-2": "nw-euro",
    "tp-clash-2": "tp-clash",
    "hb-holiday": "hb-sick",
    "hb-holiday-2": "hb-holiday",
    "hb-dock-b": "hb-dock",
    "nd-loop": "nd-goran",
}
OLDER_THAN_THE_WINDOW = {"hb-memerr": "Mika: Saltmere depot"}
"""The run that this one depends on ended more than a day before; what it left in memory is shown."""


def depending_on(what: str) -> set[str]:
    return {label["key"] for label in label_records(FIRST_ANNOTATOR).values() if what in label["depends_on"]}


def test_instructions_that_labels_depend_on_are_shown(requests: dict[str, JudgeRequest]) -> None:
    assert depending_on("system_prompt") == IN_INSTRUCTIONS.keys()
    missing = {key for key, words in IN_INSTRUCTIONS.items() if words not in requests[key].context.told}
    assert missing == set()


def test_memory_that_labels_depend_on_is_shown(requests: dict[str, JudgeRequest]) -> None:
    assert depending_on("memory") == IN_MEMORY.keys()
    for key, words in IN_MEMORY.items():
        assert words in requests[key].context.told.split("\n\nMemory:\n")[1]


def test_earlier_runs_that_labels_depend_on_are_shown(requests: dict[str, JudgeRequest], story: Pipeline) -> None:
    assert depending_on("earlier_run") == IN_EARLIER_RUN.keys() | OLDER_THAN_THE_WINDOW.keys()
    assert all(words in requests[key].context.told for key, words in OLDER_THAN_THE_WINDOW.items())
    ended = {
        label_records(FIRST_ANNOTATOR)[row["run_id"]]["key"]: f"{row['end_time']:Run that ended %Y-%m-%d %H:%M UTC}"
        for row in story.ask("SELECT run_id, end_time FROM trajectory.trajectories")
    }
    missing = {key for key, needed in IN_EARLIER_RUN.items() if ended[needed] not in requests[key].context.earlier}
    assert missing == set()


def test_all_of_the_context_of_the_story_is_shown(requests: dict[str, JudgeRequest]) -> None:
    for key, request in requests.items():
        for part in ("instructions", "memory", "tools"):
            counts = request.context.coverage.get(part, {"characters": 0, "shown": 0})
            assert counts["shown"] == counts["characters"], (key, part)
        runs = request.context.coverage.get("earlier_runs", {"count": 0, "shown": 0})
        assert runs["shown"] == runs["count"], key


def test_prompt_of_the_story_is_what_the_verdict_says(requests: dict[str, JudgeRequest], story: Pipeline) -> None:
    rows = story.ask(
        "SELECT run_id, shown_sha256, context_coverage FROM trajectory.outcomes o JOIN trajectory.verdicts"
        " USING (run_id, verdict_key)"
    )
    judged = {label_records(FIRST_ANNOTATOR)[row["run_id"]]["key"]: row for row in rows if row["shown_sha256"]}
    assert len(judged) > 100
    for key, row in judged.items():
        assert row["context_coverage"] == requests[key].context.coverage, key
