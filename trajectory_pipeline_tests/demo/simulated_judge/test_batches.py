"""The simulated server's files and batches, asked with the client library as a user of OpenAI would."""

import json
import time
from decimal import Decimal
from typing import Any

import openai
import pytest

from trajectory_pipeline.demo.simulated_judge import JUDGE_MODEL, SIMULATED_PRICES, SimulatedJudge


@pytest.fixture
def client(judge: SimulatedJudge) -> openai.OpenAI:
    return openai.OpenAI(base_url=judge.base_url, api_key="none is needed", max_retries=0)


def lines(number: int, **changes: Any) -> bytes:
    body = {"model": JUDGE_MODEL, "messages": [{"role": "user", "content": "Hello"}]}
    asked = [
        {"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(number)
    ]
    return b"\n".join(json.dumps({**one, **changes}).encode() for one in asked)


def begin(client: openai.OpenAI, content: bytes) -> openai.types.Batch:
    uploaded = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )


def test_batch_answers_every_line_at_half_the_price(client: openai.OpenAI, judge: SimulatedJudge) -> None:
    batch = begin(client, lines(5))
    assert (batch.status, batch.metadata) == ("validating", {"a": "b"})
    assert [one.id for one in client.batches.list()] == [batch.id]
    ended = client.batches.retrieve(batch.id)
    assert ended.status == "completed"
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.request_counts.total) == (5, 5)
    answers = [json.loads(line) for line in client.files.content(str(ended.output_file_id)).iter_lines()]
    assert [one["custom_id"] for one in answers] == [f"c{n}" for n in range(5)]
    usage = answers[0]["response"]["body"]["usage"]
    full = SIMULATED_PRICES[JUDGE_MODEL].cost(usage["prompt_tokens"], 0, usage["completion_tokens"])
    assert Decimal(judge.calls()["cost_usd"]) == 5 * full / 2
    assert ended.usage is not None
    assert ended.usage.total_tokens == judge.calls()["total_tokens"]


def test_slow_batch_runs_and_can_be_cancelled(client: openai.OpenAI, judge: SimulatedJudge) -> None:
    judge.plan_batches({"seconds": 600})
    batch = begin(client, lines(4))
    assert client.batches.retrieve(batch.id).status == "in_progress"
    assert client.batches.cancel(batch.id).status == "cancelling"
    ended = client.batches.retrieve(batch.id)
    assert (ended.status, ended.output_file_id) == ("cancelled", None)
    errors = client.files.content(str(ended.error_file_id)).text.splitlines()
    assert {json.loads(line)["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert judge.calls()["received"] == 0
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"no json", "invalid_json_line"),
        (lines(2, custom_id="same"), "duplicate_custom_id"),
        (lines(1, url="/v1/embeddings"), "mismatched_url"),
    ],
)
def test_wrong_file_fails_without_cost(client: openai.OpenAI, judge: SimulatedJudge, content: bytes, code: str) -> None:
    ended = client.batches.retrieve(begin(client, content).id)
    assert ended.status == "failed"
    assert ended.errors is not None
    assert [one.code for one in ended.errors.data or ()] == [code]
    assert judge.calls()["received"] == 0


def test_files_are_listed_page_by_page_and_deleted(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", b"x"), purpose="batch").id for n in range(5)]
    assert [one.id for one in client.files.list(limit=2)] == made[::-1]
    assert client.files.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(made[0])
    with pytest.raises(openai.BadRequestError, match="No such File"):
        client.batches.create(input_file_id=made[0], endpoint="/v1/chat/completions", completion_window="24h")


def test_planned_faults_strike_files_and_lines(client: openai.OpenAI, judge: SimulatedJudge) -> None:
    judge.plan_batches({"lines": ["duplicate", "foreign", "malformed", "shuffled"]}, {"wire": ["create_lost"]})
    ended = client.batches.retrieve(begin(client, lines(3)).id)
    content = client.files.content(str(ended.output_file_id)).text.splitlines()
    assert len(content) == 6
    with pytest.raises(openai.APIConnectionError):
        begin(client, lines(1))
    assert len(judge.batches()["batches"]) == 2
    judge.plan_faults([{"fault": "rate_limit_bare", "times": 1}])
    began = time.monotonic()
    ended = client.batches.retrieve(begin(client, lines(2)).id)
    assert time.monotonic() - began < 5
    assert ended.request_counts is not None
    assert (ended.request_counts.completed, ended.request_counts.failed) == (1, 1)
