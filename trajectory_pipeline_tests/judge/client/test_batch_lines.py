"""Lines of a batch's files: whatever their order, repetition and strangers, each call gets what came of it, once."""

import asyncio
import gzip
import io
import json
import tempfile
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.client import batch_lines
from trajectory_pipeline.judge.client.batch_api import (
    ENDPOINT,
    BatchApiError,
    batch_errors,
    enqueued_limit,
    open_batch_api,
)
from trajectory_pipeline.judge.client.batch_lines import BatchReplies, request_line
from trajectory_pipeline.judge.client.call_record import CallRecord
from trajectory_pipeline_tests.judge.judge_client import judge_at
from trajectory_pipeline_tests.judge.provider import Provider

ANSWER = {
    "id": "chatcmpl-1",
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "{}"}}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
}


def call(number: int) -> CallRecord:
    return CallRecord(
        "m", "http://localhost/v1", 300, 120, 500, attempt_id=f"call-{number}", batch_id="b", cost_usd=None
    )


def answer(number: int, request_id: str = "req") -> bytes:
    response = {"status_code": 200, "request_id": f"{request_id}-{number}", "body": ANSWER}
    return json.dumps({"custom_id": f"call-{number}", "response": response, "error": None}).encode()


def replies(*lines: bytes, calls: int = 1, **fields: Any) -> BatchReplies:
    found = BatchReplies("completed", **fields)
    found.index(io.BytesIO(b"\n".join(lines)), frozenset(f"call-{number}" for number in range(calls)))
    return found


def test_request_line_is_one_json_line_with_the_call_id() -> None:
    line = request_line(call(3), ENDPOINT, b'{"model":"m","messages":[]}')
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "custom_id": "call-3",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": []},
    }


STRANGERS = (b'{"custom_id": "somebody-else"}', b'{"custom_id": ', b"[]", b"null", b'{"custom_id": 7}', b"", b"\xff")


@given(st.data())
def test_each_call_gets_its_own_reply_once(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 8))
    present = data.draw(st.sets(st.integers(0, number - 1)))
    lines = [answer(one) for one in present] + data.draw(st.lists(st.sampled_from(STRANGERS), max_size=4))
    again = data.draw(st.lists(st.sampled_from(sorted(present)), max_size=3)) if present else []
    lines = data.draw(st.permutations([*lines, *map(answer, again)]))
    found = replies(*lines, calls=number)
    for one in range(number):
        reply = found.reply(call(one))
        assert reply.call.attempt_id == f"call-{one}"
        assert (reply.call.result == "answered") == (one in present)
        # A line that stands twice with one request id is one piece of work.
        assert (reply.call.usage.input_tokens if reply.call.usage else 0) == (100 if one in present else 0)
        assert one in present or (reply.call.result, reply.call.error_class) == ("lost", "batch_ended")
    assert found.worked_on == len(present)


def test_line_worked_on_twice_is_billed_twice() -> None:
    reply = replies(answer(0, "first"), answer(0, "second")).reply(call(0))
    assert reply.call.usage is not None
    assert (reply.call.usage.input_tokens, reply.call.usage.output_tokens) == (200, 20)


def test_line_whose_usage_is_not_told_counts_at_its_reservation_beside_another() -> None:
    untold = json.dumps(
        {"custom_id": "call-0", "response": {"status_code": 200, "request_id": "other", "body": {"choices": []}}}
    ).encode()
    for lines in ((untold, answer(0)), (answer(0), untold), (untold, untold.replace(b"other", b"third"))):
        usage = replies(*lines).reply(call(0)).call.usage
        assert usage is not None
        told = lines[0] == answer(0) or lines[1] == answer(0)
        assert (usage.input_tokens, usage.output_tokens) == ((220, 510) if told else (240, 1000))


def test_call_with_a_refusal_and_a_line_that_may_be_billed_is_not_free() -> None:
    refused = json.dumps({"custom_id": "call-0", "response": {"status_code": 429, "body": {}}}).encode()
    gateway = json.dumps({"custom_id": "call-0", "response": {"status_code": 504, "body": {}}}).encode()
    for lines in ((refused, gateway), (gateway, refused)):
        assert replies(*lines).reply(call(0)).call.result == "lost"


@pytest.mark.parametrize("ended", [b"", b"\n"])
def test_line_longer_than_any_answer_is_not_read(ended: bytes) -> None:
    whole = answer(1)
    body = b'{"id": "x", "custom_id": "call-0", "response": {"status_code": 200, "body": {"a": "'
    with tempfile.TemporaryFile() as file:
        file.write(whole + b"\n" + body)
        for _ in range(60):
            file.write(b"a" * 1_000_000)
        file.write(b'"}}}' + ended + (whole.replace(b"call-1", b"call-2") if ended else b""))
        tracemalloc.start()
        found = BatchReplies("completed", max_response_tokens=500)
        found.index(file, frozenset({"call-0", "call-1", "call-2"}))
        reply = found.reply(call(0)).call
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.reply(call(1)).call.result == "answered"
        assert found.reply(call(2)).call.result == ("answered" if ended else "lost")
    assert peak < 12_000_000
    assert (reply.result, reply.error_class) == ("unusable", "not_a_completion")
    assert "it is larger than" in (reply.error_message or "")
    assert found.worked_on == (3 if ended else 2)


def test_answer_goes_before_an_error_of_the_same_call() -> None:
    error = json.dumps({"custom_id": "call-0", "response": {"status_code": 500, "body": {}}}).encode()
    assert replies(error, answer(0)).reply(call(0)).call.result == "answered"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"response": {"status_code": 429, "body": {"error": {"message": "Rate limit"}}}}, ("error", "rate_limited")),
        ({"response": {"status_code": 401, "body": None}}, ("error", "authentication")),
        ({"error": {"code": "batch_expired", "message": "too late"}}, ("error", "batch_ended")),
        ({"error": {"code": "invalid_api_key", "message": "Incorrect API key"}}, ("error", "authentication")),
        ({"error": {"message": "context_length_exceeded"}}, ("error", "context_too_long")),
        ({"response": {"status_code": 200, "body": {}}}, ("unusable", "not_a_completion")),
        ({"response": {"status_code": 200, "body": None}}, ("unusable", "not_a_completion")),
        ({"error": {"code": ["x"], "message": "Rate limit"}}, ("error", "rate_limited")),
        ({"response": 7, "error": 7}, None),
        ({}, None),
    ],
)
def test_error_line_has_the_class_of_a_call(line: dict[str, Any], expected: tuple[str, str] | None) -> None:
    found = replies(json.dumps({"custom_id": "call-0", **line}).encode()).reply(call(0)).call
    if expected is not None:
        assert (found.result, found.error_class) == expected
    assert found.result != "answered"
    assert found.error_message


@pytest.mark.parametrize("status", [200, "200", 200.0])
@pytest.mark.parametrize("request_id", ["req_é", "req\ud800", "a\nb: c", {"a": 1}, 7, None])
def test_answer_in_an_odd_line_is_read(status: Any, request_id: Any) -> None:
    response = {"status_code": status, "request_id": request_id, "body": ANSWER}
    found = replies(json.dumps({"custom_id": "call-0", "response": response}).encode()).reply(call(0))
    assert (found.text, found.call.http_status) == ("{}", 200)
    assert isinstance(found.call.http_status, int)


def test_line_that_cannot_be_read_costs_no_other_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(sent: CallRecord, *_: Any, **__: Any) -> Any:
        raise RecursionError("too deep")

    found = replies(answer(0), answer(1), calls=2)
    with monkeypatch.context() as patched:
        patched.setattr(batch_lines, "read_reply", unread)
        odd = found.reply(call(0)).call
    # It may have been billed.
    assert (odd.result, odd.error_class, odd.usage) == ("unusable", "not_a_completion", None)
    assert odd.error_message == "its line of the batch's file cannot be read: RecursionError: too deep"
    assert found.reply(call(1)).call.result == "answered"


def test_missing_line_costs_nothing_where_all_is_accounted_for() -> None:
    found = replies(all_accounted=True).reply(call(0)).call
    assert (found.result, found.error_class) == ("error", "batch_ended")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("Enqueued token limit reached. Limit: 90,000 enqueued tokens.", 90_000), ("limit 5000", 5000), ("full", None)],
)
def test_limit_of_enqueued_tokens_is_read_from_the_error(text: str, limit: int | None) -> None:
    assert enqueued_limit(text) == limit


def test_batch_api_goes_nowhere_with_egress_off() -> None:
    async def work() -> None:
        async with open_batch_api(judge_at("https://api.openai.com/v1", local_only=True)):
            raise AssertionError("a client was opened")

    with pytest.raises(JudgeError, match="TRAJECTORY_LLM_EGRESS is off"):
        asyncio.run(work())


def test_description_of_a_batch_without_a_bound_is_an_error() -> None:
    packed = gzip.compress(b'{"id": "' + b"a" * 60_000_000 + b'"}')

    async def work(url: str) -> None:
        async with open_batch_api(judge_at(url)) as api:
            await api.create("batch", "file", "digest")

    with Provider(lambda _: (200, packed, {"content-encoding": "gzip"})) as provider:
        tracemalloc.start()
        with pytest.raises(BatchApiError, match="Creating a batch"):
            asyncio.run(work(provider.url))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40_000_000


ODD = [
    (b"<html>log in</html>", {"content-type": "text/html"}),
    ({"foo": 1}, {}),
    ({"error": {"message": "no"}}, {}),
    ([], {}),
    (None, {}),
    ({"id": None, "status": None}, {}),
    ({"id": "batch", "status": 7}, {}),
    ("batch", {}),
    (b"", {}),
]


@pytest.mark.parametrize(("body", "headers"), ODD)
def test_description_of_another_shape_is_an_error(body: Any, headers: dict[str, str]) -> None:
    async def work(url: str) -> None:
        async with open_batch_api(judge_at(url)) as api:
            await api.create("batch", "file", "digest")

    with (
        Provider(lambda _: (200, body, headers)) as provider,
        pytest.raises(BatchApiError, match="Creating a batch") as raised,
    ):
        asyncio.run(work(provider.url))
    # It may have been created.
    assert not raised.value.is_refusal


@pytest.mark.parametrize("moment", ["now", 10**20, -(10**13), 1_796_000_000_000, None])
def test_description_with_odd_details_is_read(moment: Any) -> None:
    odd = {
        "id": "b",
        "status": "WAITING",
        "request_counts": 7,
        "created_at": moment,
        "completed_at": moment,
        "metadata": "no",
        "output_file_id": 1,
        "errors": "no",
    }

    async def work(url: str) -> Any:
        async with open_batch_api(judge_at(url)) as api:
            return await api.create("batch", "file", "digest")

    with Provider(lambda _: (200, odd, {})) as provider:
        found = asyncio.run(work(provider.url))
    assert (found.id, found.status, found.request_counts, found.output_file_id) == ("b", "waiting", None, None)
    assert datetime.fromtimestamp(found.created_at, UTC) > datetime(2026, 1, 1, tzinfo=UTC)
    assert found.completed_at is None
    assert batch_errors(found) == ""
