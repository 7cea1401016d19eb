"""The fault table: each row, requested over real HTTP, does what it says; every row has a test."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest
from openai import OpenAI

from trajectory_pipeline.demo.simulated_judge import (
    FAULTS,
    JUDGE_MODEL,
    FaultStage,
    SimulatedJudge,
    fault_table_markdown,
)
from trajectory_pipeline.errors import JudgeError
from trajectory_pipeline.judge.response_schema import JudgeResponse
from trajectory_pipeline_tests.demo.simulated_judge.prompts import ORDER_RUN, messages_of

REFUSALS: dict[str, tuple[type[openai.APIStatusError], int, str | None]] = {
    "rate_limit": (openai.RateLimitError, 429, "rate_limit_exceeded"),
    "rate_limit_date": (openai.RateLimitError, 429, "rate_limit_exceeded"),
    "rate_limit_ms": (openai.RateLimitError, 429, "rate_limit_exceeded"),
    "rate_limit_bare": (openai.RateLimitError, 429, "rate_limit_exceeded"),
    "insufficient_quota": (openai.RateLimitError, 429, "insufficient_quota"),
    "server_error": (openai.InternalServerError, 500, None),
    "bad_gateway": (openai.InternalServerError, 502, None),
    "unavailable": (openai.InternalServerError, 503, None),
    "gateway_timeout": (openai.InternalServerError, 504, None),
    "unauthorized": (openai.AuthenticationError, 401, "invalid_api_key"),
    "forbidden": (openai.PermissionDeniedError, 403, "unsupported_country_region_territory"),
    "context_length_exceeded": (openai.BadRequestError, 400, "context_length_exceeded"),
    "content_filter_request": (openai.BadRequestError, 400, "content_filter"),
    "unsupported_response_format": (openai.BadRequestError, 400, None),
    "unsupported_parameter": (openai.BadRequestError, 400, "unsupported_parameter"),
    "model_not_found": (openai.NotFoundError, 404, "model_not_found"),
    "echoed_key": (openai.AuthenticationError, 401, "invalid_api_key"),
    "payment_required": (openai.APIStatusError, 402, None),
    "unsupported_temperature": (openai.BadRequestError, 400, "unsupported_value"),
    "unknown_field;param=temperature": (openai.BadRequestError, 400, "400"),
}

SHOWN_IDS = {"message-a", "message-b", "message-c", "message-d"}


def ask(client: OpenAI, fault: str, **more: Any) -> Any:
    """Ask with the schema, but without the client's parsing, so that what came can be looked at."""
    schema = openai.lib._pydantic.to_strict_json_schema(JudgeResponse)
    return client.chat.completions.with_raw_response.create(
        model=JUDGE_MODEL,
        messages=messages_of(),
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        },
        extra_headers={"x-simulate": fault},
        **more,
    )


def choice_of(client: OpenAI, fault: str) -> Any:
    return ask(client, fault).parse().choices[0]


def answer_of(client: OpenAI, fault: str) -> Any:
    choice = choice_of(client, fault)
    assert choice.finish_reason == "stop"
    return json.loads(choice.message.content)


def citations_in(answer: Any) -> list[dict[str, str]]:
    evidence = [
        *(answer["failure"] or {"evidence": []})["evidence"],
        *(c for r in answer["requirements"] for c in r["evidence"]),
    ]
    assert evidence
    return evidence


def violations(answer: Any) -> set[str]:
    with pytest.raises(pydantic.ValidationError) as caught:
        JudgeResponse.model_validate_json(answer if isinstance(answer, str) else json.dumps(answer))
    return {error["type"] for error in caught.value.errors()}


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_fault_raises_the_clients_error(client: OpenAI, judge: SimulatedJudge, name: str) -> None:
    kind, status, code = REFUSALS[name]
    with pytest.raises(kind) as caught:
        ask(client, name)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    account = judge.calls()
    assert account["by_status"] == {str(status): 1}
    assert account["by_fault"] == {name.partition(";")[0]: 1}
    assert (account["answered"], account["cost_usd"]) == (0, "0")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("no_tool_support", openai.BadRequestError, "simulated-judge does not support tools"),
        ("no_tool_endpoint", openai.NotFoundError, "No endpoints found that support tool use"),
    ],
)
def test_no_tool_support_refuses_requests_with_tools(
    client: OpenAI, name: str, kind: type[openai.APIStatusError], words: str
) -> None:
    assert ask(client, name).parse().choices
    with pytest.raises(kind, match=words):
        ask(client, name, tools=[{"type": "function", "function": {"name": "f"}}])


def test_echoed_key_repeats_the_key_in_the_error(judge: SimulatedJudge) -> None:
    with (
        OpenAI(base_url=judge.base_url, api_key="sk-very-secret", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="provided: sk-very-secret"),
    ):
        ask(client, "echoed_key")


def retry_headers(client: OpenAI, fault: str) -> dict[str, str]:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, fault)
    return {name: value for name, value in caught.value.response.headers.items() if name.startswith("retry-after")}


def test_rate_limit_sends_each_kind_of_retry_header(client: OpenAI) -> None:
    assert retry_headers(client, "rate_limit;retry_after=7") == {"retry-after": "7"}
    assert retry_headers(client, "rate_limit_ms;retry_after_ms=250") == {"retry-after-ms": "250"}
    assert retry_headers(client, "rate_limit_bare") == {}
    assert retry_headers(client, "unavailable") == {}
    assert retry_headers(client, "unavailable;retry_after=3") == {"retry-after": "3"}
    date = retry_headers(client, "rate_limit_date;retry_after=60")["retry-after"]
    assert email.utils.parsedate_to_datetime(date).timestamp() == pytest.approx(time.time() + 60, abs=3)


def test_client_that_retries_after_rate_limit_gets_its_answer(judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "rate_limit_ms", "params": {"retry_after_ms": 10}, "times": 2}])
    with OpenAI(base_url=judge.base_url, api_key="x", max_retries=3) as patient:
        patient.chat.completions.create(model=JUDGE_MODEL, messages=messages_of())
    assert judge.calls()["by_status"] == {"200": 1, "429": 2}


def test_unsupported_response_format_allows_a_fallback(client: OpenAI) -> None:
    for wanted, refused in (("json_schema", False), ("json_object", True), ("json_schema,json_object", True)):
        request = client.chat.completions.create
        header = {"x-simulate": f"unsupported_response_format;types={wanted}"}
        arguments: Any = {"model": JUDGE_MODEL, "messages": messages_of(), "extra_headers": header}
        request(**arguments)  # plain text always passes
        if refused:
            with pytest.raises(openai.BadRequestError, match="response_format"):
                request(**arguments, response_format={"type": "json_object"})
        else:
            request(**arguments, response_format={"type": "json_object"})


def test_unsupported_parameter_is_refused_only_if_sent(client: OpenAI) -> None:
    header = {"x-simulate": "unsupported_parameter;param=seed"}
    client.chat.completions.create(model=JUDGE_MODEL, messages=messages_of(), extra_headers=header)
    with pytest.raises(openai.BadRequestError, match="'seed'"):
        client.chat.completions.create(model=JUDGE_MODEL, messages=messages_of(), extra_headers=header, seed=1)


# ---- delays -------------------------------------------------------------------------------------------------------


def settled(judge: SimulatedJudge) -> dict[str, Any]:
    """Wait until no call is open: a server notices that its client has left a little after it has."""
    deadline = time.monotonic() + 5
    while (account := judge.calls())["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return account


def test_slow_does_not_charge_a_client_that_left(client: OpenAI, judge: SimulatedJudge) -> None:
    began = time.monotonic()
    assert answer_of(client, "slow;seconds=0.3")
    assert time.monotonic() - began >= 0.3
    judge.reset_calls()
    with pytest.raises(openai.APITimeoutError):
        ask(client, "slow;seconds=5", timeout=0.2)
    account = settled(judge)
    assert (account["by_status"], account["answered"], account["cost_usd"]) == ({"abandoned": 1}, 0, "0")


def test_hang_never_answers(client: OpenAI, judge: SimulatedJudge) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(client, "hang", timeout=0.2)
    assert settled(judge)["by_status"] == {"abandoned": 1}
    with pytest.raises(openai.APIConnectionError):
        ask(client, "hang;seconds=0.1")
    assert settled(judge)["by_status"] == {"abandoned": 1, "dropped": 1}


def test_late_answer_is_charged_if_the_client_left(client: OpenAI, judge: SimulatedJudge) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(client, "late_answer;seconds=0.5", timeout=0.2)
    account = settled(judge)
    assert (account["by_status"], account["answered"]) == ({"200": 1}, 1)
    assert float(account["cost_usd"]) > 0


# ---- the wire -----------------------------------------------------------------------------------------------------


def test_connection_dropped_sends_no_byte(client: OpenAI, judge: SimulatedJudge) -> None:
    with pytest.raises(openai.APIConnectionError):
        ask(client, "connection_dropped")
    account = judge.calls()
    assert (account["by_status"], account["answered"], account["cost_usd"]) == ({"dropped": 1}, 0, "0")
    with pytest.raises(openai.APIConnectionError):
        ask(client, "connection_dropped;billed=true")
    assert float(judge.calls()["cost_usd"]) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_connection_dropped_mid_body_truncates_the_body(client: OpenAI, judge: SimulatedJudge, stream: bool) -> None:
    with pytest.raises(Exception, match=r"peer closed|incomplete|disconnect|Connection error"):
        list(ask(client, "connection_dropped_mid_body", stream=stream).parse())
    assert judge.calls()["by_fault"] == {"connection_dropped_mid_body": 1}
    assert float(judge.calls()["cost_usd"]) > 0


def test_html_body_is_sent_instead_of_json(client: OpenAI, judge: SimulatedJudge) -> None:
    raw = ask(client, "html_body")
    assert raw.status_code == 200
    assert raw.headers["content-type"].startswith("text/html")
    assert "<html>" in raw.text
    assert (judge.calls()["answered"], judge.calls()["cost_usd"]) == (0, "0")


def test_wrong_content_type_labels_json_as_text(client: OpenAI) -> None:
    raw = ask(client, "wrong_content_type")
    assert raw.headers["content-type"].startswith("text/plain")
    assert json.loads(raw.text)["choices"]


def test_provider_sends_the_row_that_is_named(client: OpenAI, judge: SimulatedJudge) -> None:
    raw = ask(client, "provider;row=mistral_thinking_parts")
    assert [part["type"] for part in json.loads(raw.text)["choices"][0]["message"]["content"]] == ["thinking", "text"]
    assert (raw.headers["x-simulated"], judge.calls()["by_fault"]) == ("true", {"provider": 1})
    with pytest.raises(JudgeError, match="there is no row 'x'"):
        judge.plan_faults([{"fault": "provider", "params": {"row": "x"}}])


def test_error_body_has_status_200(client: OpenAI, judge: SimulatedJudge) -> None:
    raw = ask(client, "error_body;code=429")
    assert (raw.status_code, json.loads(raw.text)["error"]["code"]) == (200, 429)
    assert (judge.calls()["answered"], judge.calls()["cost_usd"]) == (0, "0")


def test_slow_drip_sends_the_body_in_pieces_and_charges(client: OpenAI, judge: SimulatedJudge) -> None:
    began = time.monotonic()
    assert ask(client, "slow_drip;seconds=0.3").parse().choices
    assert time.monotonic() - began >= 0.3
    assert float(judge.calls()["cost_usd"]) > 0


def test_limit_used_up_sets_the_rate_headers(client: OpenAI) -> None:
    headers = ask(client, "limit_used_up;seconds=3").headers
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-reset-requests"]) == ("0", "3s")


# ---- answers ------------------------------------------------------------------------------------------------------


def is_truncated(client: OpenAI) -> None:
    choice = choice_of(client, "truncated")
    assert choice.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.content)


def is_filtered(client: OpenAI) -> None:
    assert choice_of(client, "content_filter_answer").finish_reason == "content_filter"
    with pytest.raises(openai.ContentFilterFinishReasonError):
        client.chat.completions.parse(
            model=f"{JUDGE_MODEL}:content_filter_answer", messages=messages_of(), response_format=JudgeResponse
        )


def is_refused(client: OpenAI) -> None:
    message = choice_of(client, "refusal").message
    assert (message.content, message.refusal.startswith("[simulated judge]")) == (None, True)


def is_empty(client: OpenAI) -> None:
    message = choice_of(client, "empty_content").message
    assert (message.content, message.refusal) == ("", None)


def is_null(client: OpenAI) -> None:
    message = choice_of(client, "null_content").message
    assert (message.content, message.refusal) == (None, None)


def is_no_json(client: OpenAI) -> None:
    choice = choice_of(client, "invalid_json")
    assert choice.finish_reason == "stop"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.content)


def lacks_a_field(client: OpenAI) -> None:
    answer = answer_of(client, "missing_field;field=summary")
    assert "summary" not in answer
    assert violations(answer) == {"missing"}
    assert violations(answer_of(client, "missing_field")) == {"missing"}


def has_a_wrong_label(client: OpenAI) -> None:
    assert violations(answer_of(client, "wrong_enum")) == {"literal_error"}


def has_an_extra_field(client: OpenAI) -> None:
    answer = answer_of(client, "extra_field;field=outcome")
    assert "outcome" in answer
    assert violations(answer) == {"extra_forbidden"}


def holds_nan(client: OpenAI) -> None:
    content = choice_of(client, "nan_number").message.content
    assert ":NaN" in content
    assert violations(content)


def holds_a_number_beyond(client: OpenAI) -> None:
    assert violations(answer_of(client, "number_out_of_range")) == {"less_than_equal"}


def holds_too_many_items(client: OpenAI) -> None:
    answer = answer_of(client, "wrong_item_count")
    assert len(answer["requirements"]) == 8
    assert violations(answer) == {"too_long"}


def stands_in_a_fence(client: OpenAI) -> None:
    content = choice_of(client, "fenced_json").message.content
    fenced = content.partition("```json\n")[2].rpartition("\n```")[0]
    JudgeResponse.model_validate_json(fenced)


def is_one_fence(client: OpenAI) -> None:
    content = choice_of(client, "fenced_whole").message.content
    JudgeResponse.model_validate_json(content.removeprefix("```json\n").removesuffix("\n```"))


def thinks_aloud(client: OpenAI) -> None:
    thought, _, answer = choice_of(client, "thinking").message.content.partition("</think>")
    assert thought.startswith("<think>")
    JudgeResponse.model_validate_json(answer)


def ignores_its_tool(client: OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": JudgeResponse.model_json_schema()}}
    choice = {"type": "function", "function": {"name": "f"}}
    message = ask(client, "tool_ignored", tools=[tool], tool_choice=choice).parse().choices[0].message
    assert message.tool_calls is None
    JudgeResponse.model_validate_json(message.content)


def fabricates_quotes(client: OpenAI) -> None:
    for citation in citations_in(answer_of(client, "fabricated_quote")):
        assert citation["message_id"] in SHOWN_IDS
        assert citation["quote"] not in ORDER_RUN


def cites_unknown_messages(client: OpenAI) -> None:
    for citation in citations_in(answer_of(client, "unknown_message")):
        assert citation["message_id"] not in ORDER_RUN
        assert citation["quote"] in ORDER_RUN


def has_no_usage(client: OpenAI) -> None:
    raw = ask(client, "usage_missing")
    assert "usage" not in json.loads(raw.text)
    assert raw.parse().usage is None


def has_null_usage(client: OpenAI) -> None:
    raw = ask(client, "usage_null")
    assert json.loads(raw.text)["usage"] is None
    assert raw.parse().usage is None


def echoes_another_model(client: OpenAI) -> None:
    assert ask(client, "wrong_model_name").parse().model == "some-other-model-2024-01-01"


def repeats_its_choice(client: OpenAI) -> None:
    choices = ask(client, "duplicate_choices").parse().choices
    assert [c.index for c in choices] == [0, 1]
    assert choices[0].message == choices[1].message


def gives_no_choice(client: OpenAI) -> None:
    assert ask(client, "no_choices").parse().choices == []


ANSWERS: dict[str, Callable[[OpenAI], None]] = {
    "truncated": is_truncated,
    "content_filter_answer": is_filtered,
    "refusal": is_refused,
    "empty_content": is_empty,
    "null_content": is_null,
    "invalid_json": is_no_json,
    "missing_field": lacks_a_field,
    "wrong_enum": has_a_wrong_label,
    "extra_field": has_an_extra_field,
    "nan_number": holds_nan,
    "number_out_of_range": holds_a_number_beyond,
    "wrong_item_count": holds_too_many_items,
    "fenced_json": stands_in_a_fence,
    "fenced_whole": is_one_fence,
    "thinking": thinks_aloud,
    "fabricated_quote": fabricates_quotes,
    "unknown_message": cites_unknown_messages,
    "usage_missing": has_no_usage,
    "usage_null": has_null_usage,
    "wrong_model_name": echoes_another_model,
    "duplicate_choices": repeats_its_choice,
    "no_choices": gives_no_choice,
    "tool_ignored": ignores_its_tool,
}

DELAYS_AND_WIRE = {
    "slow", "hang", "late_answer", "connection_dropped", "connection_dropped_mid_body", "html_body",
    "wrong_content_type", "slow_drip", "error_body", "limit_used_up",
    "provider",
}  # fmt: skip
WITHOUT_TOOLS = {"no_tool_support", "no_tool_endpoint"}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_fault_corrupts_the_answer_and_charges(client: OpenAI, judge: SimulatedJudge, name: str) -> None:
    ANSWERS[name](client)
    account = judge.calls()
    assert account["by_fault"] == {name: account["received"]}
    assert account["answered"] == account["received"]
    assert float(account["cost_usd"]) > 0


@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.stage in (FaultStage.ANSWER, FaultStage.ENVELOPE)])
def test_answer_fault_corrupts_a_stream(client: OpenAI, judge: SimulatedJudge, name: str) -> None:
    chunks = list(ask(client, name, stream=True, stream_options={"include_usage": True}).parse())
    assert chunks
    assert judge.calls()["by_fault"] == {name: 1}
    if name in ("usage_missing", "usage_null"):
        assert all(chunk.usage is None for chunk in chunks)
    if name == "refusal":
        assert any(chunk.choices and chunk.choices[0].delta.refusal for chunk in chunks)


@pytest.mark.parametrize("name", [n for n, f in FAULTS.items() if f.stage is FaultStage.ANSWER])
def test_answer_fault_corrupts_an_answer_without_schema(client: OpenAI, name: str) -> None:
    right, wrong = (
        client.chat.completions.create(
            model=model, messages=messages_of(), response_format={"type": "json_object"}
        ).choices[0]
        for model in (JUDGE_MODEL, f"{JUDGE_MODEL}:{name}")
    )
    assert right.message.content != wrong.message.content


def test_every_fault_is_tested_and_printed() -> None:
    refusals = {name.partition(";")[0] for name in REFUSALS}
    decisions = {name for name, fault in FAULTS.items() if fault.stage in (FaultStage.DECISION, FaultStage.EMBEDDING)}
    assert set(FAULTS) == refusals | set(ANSWERS) | DELAYS_AND_WIRE | WITHOUT_TOOLS | decisions
    assert all(f"| `{name}` |" in fault_table_markdown() for name in FAULTS)


# ---- planning faults ----------------------------------------------------------------------------------------------


def outcomes(client: OpenAI, calls: int, text: str = "Hello") -> str:
    def one() -> str:
        try:
            client.chat.completions.create(model=JUDGE_MODEL, messages=[{"role": "user", "content": text}])
        except openai.APIStatusError as error:
            return str(error.status_code)
        return "ok"

    return " ".join(one() for _ in range(calls))


def test_planned_fault_applies_by_times_every_and_match(client: OpenAI, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "server_error", "times": 2}])
    assert outcomes(client, 4) == "500 500 ok ok"
    judge.clear_faults()
    judge.plan_faults([{"fault": "unauthorized", "every": 3, "times": 2}])
    assert outcomes(client, 10) == "ok ok 401 ok ok 401 ok ok ok ok"
    judge.clear_faults()
    judge.plan_faults([{"fault": "forbidden", "match": "secret"}, {"fault": "unavailable"}])
    assert outcomes(client, 1, "a secret") + " " + outcomes(client, 1) == "403 503"
    judge.clear_faults()
    assert outcomes(client, 1) == "ok"


def test_header_precedes_model_suffix_and_plan(client: OpenAI, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "unavailable"}])
    for model, headers, status in (
        (f"{JUDGE_MODEL}:forbidden", {"x-simulate": "unauthorized"}, 401),
        (f"{JUDGE_MODEL}:forbidden", {}, 403),
        (JUDGE_MODEL, {}, 503),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=model, messages=messages_of(), extra_headers=headers)
        assert caught.value.status_code == status
    assert [order["fired"] for order in judge.plan_faults([])] == [1]


def test_model_suffix_carries_parameters_and_is_echoed(client: OpenAI) -> None:
    model = f"{JUDGE_MODEL}:slow;seconds=0.1"
    began = time.monotonic()
    assert client.chat.completions.create(model=model, messages=messages_of()).model == model
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        ({"fault": "nonsense"}, "there is no fault 'nonsense'"),
        ({"fault": "slow", "params": {"minutes": 1}}, "no parameter 'minutes'"),
        ({"fault": "slow", "params": {"seconds": "long"}}, "is not a number"),
        ({"fault": "slow", "times": 0}, "times is a whole number"),
        ({"fault": "slow", "when": "later"}, "'when' is no key of a planned fault"),
        ({}, "a planned fault is an object with the key fault"),
    ],
)
def test_plan_faults_with_an_invalid_fault_adds_none(
    judge: SimulatedJudge, planned: dict[str, Any], message: str
) -> None:
    with pytest.raises(JudgeError, match=message):
        judge.plan_faults([{"fault": "unavailable"}, planned])
    assert judge.plan_faults([]) == []


def test_invalid_fault_header_is_a_bad_request(client: OpenAI) -> None:
    for header in ("nonsense", "slow;seconds", "slow;minutes=1"):
        with pytest.raises(openai.BadRequestError, match="x-simulate"):
            ask(client, header)
