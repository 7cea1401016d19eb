"""Embeddings from an API: within the budget, each call recorded, faults told apart, and no text paid for twice."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from trajectory_pipeline.budget.caps import Budget, BudgetExhausted
from trajectory_pipeline.demo.simulated_judge import EMBEDDING_MODEL, SimulatedJudge
from trajectory_pipeline.errors import JudgeError, PipelineError, ProviderDownError
from trajectory_pipeline.judge.access_lists import JudgeAccessList
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.endpoint import EMBEDDING_ENDPOINT
from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.pipeline import remote_embedder
from trajectory_pipeline.pipeline.pending_embeddings import find_pending_embeddings
from trajectory_pipeline.pipeline.query_embedding import embed_query
from trajectory_pipeline.pipeline.remote_embedder import RemoteEmbedder
from trajectory_pipeline.search.embedding_models import unit_vector
from trajectory_pipeline.storage.postgres.embeddings import EmbeddingStore
from trajectory_pipeline.storage.postgres.pgvector import find_pgvector
from trajectory_pipeline_tests.letta_sample import sample_partitions
from trajectory_pipeline_tests.pipeline.embedding import REDACTOR, embed, embedding_run, embeddings, texts
from trajectory_pipeline_tests.pipeline.materializing import SIMULATED_PRICES, Pipeline, Row, only

HOUR = min((size, hour) for hour, size in sample_partitions().items() if size > 4)[1]
"""A partition with few runs."""


@pytest.fixture
def captured(pipeline: Pipeline) -> Pipeline:
    pipeline.capture(HOUR)
    return pipeline


def api(judge: SimulatedJudge, model: str = EMBEDDING_MODEL, **changes: Any) -> RemoteEmbedder:
    of_embedder = {name: changes.pop(name) for name in ("dimensions", "texts_per_call") if name in changes}
    config = JudgeConfig(
        **{
            "model": model,
            "base_url": judge.base_url,
            "api_key": "sk-test-0123456789",
            "max_response_tokens": 0,
            "concurrency": 2,
            "first_pause_seconds": 0.01,
            "budget": Budget(prices=SIMULATED_PRICES, daily_usd=Decimal(1)),
            "endpoint": EMBEDDING_ENDPOINT,
            **changes,
        }
    )
    return RemoteEmbedder(config, **of_embedder)


def calls(pipeline: Pipeline) -> list[Row]:
    return pipeline.ask("SELECT * FROM trajectory.verdict_attempts ORDER BY started_at")


def pending(pipeline: Pipeline, embedder: RemoteEmbedder, seconds: float = 0) -> list[str]:
    (row,) = pipeline.ask("SELECT clock_timestamp() + %s * interval '1 second' AS now", seconds)
    return find_pending_embeddings(pipeline.database, embedder, REDACTOR, row["now"]).partition_keys


def wanted(pipeline: Pipeline) -> int:
    """Texts to be embedded, equal ones once."""
    return len({row["text"] for row in texts(pipeline).values() if row["text"]})


def test_calls_are_recorded_with_their_cost_and_made_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    (result,) = embed(captured, HOUR, embedder=api(judge, texts_per_call=2))
    assert (result.embedded, result.failed, result.pending, result.is_searched) == (result.texts, 0, 0, True)
    made = calls(captured)
    assert sum(row["texts"] for row in made) == wanted(captured)
    assert max(row["texts"] for row in made) == 2
    assert len(made) == judge.calls()["received"]
    assert sum(row["cost_usd"] for row in made) == Decimal(judge.calls()["cost_usd"]) > 0
    for row in made:
        assert (row["run_id"], row["verdict_key"], row["response_format"]) == (None, None, "embeddings")
        assert (row["result"], row["output_tokens"], row["policy_id"]) == ("answered", 0, result.model_id)
    total = only(captured.ask("SELECT * FROM trajectory.spend_totals WHERE scope = 'day'"))
    assert (total["calls"], total["reserved_usd"]) == (len(made), 0)
    assert total["spent_usd"] == sum(row["cost_usd"] for row in made)
    model = only(captured.ask("SELECT * FROM trajectory.embedding_models"))
    assert (model["dimensions"], model["weights_digest"], model["base_url"]) == (64, None, judge.base_url)
    embed(captured, HOUR, embedder=api(judge))
    assert len(calls(captured)) == len(made)
    assert captured.ask("SELECT * FROM trajectory.verdict_locks") == []


def test_calls_follow_one_another_under_the_rate_limit(captured: Pipeline, judge: SimulatedJudge) -> None:
    """Slots have no gap, whoever takes them: searches too."""
    limited = api(judge, texts_per_call=2, requests_per_minute=6000)
    embed(captured, HOUR, embedder=limited)
    embed_query(captured.database, limited, REDACTOR, "refund")
    limit = only(captured.ask("SELECT base_url, model, next_at FROM trajectory.rate_limits"))
    assert (limit["base_url"], limit["model"]) == (judge.base_url, EMBEDDING_MODEL)
    made = calls(captured)
    assert len(made) > 2
    assert (limit["next_at"] - min(row["started_at"] for row in made)).total_seconds() >= (len(made) - 1) * 60 / 6000


def test_asked_dimensions_are_another_model(captured: Pipeline, judge: SimulatedJudge) -> None:
    embed(captured, HOUR, embedder=api(judge, dimensions=8))
    assert {row["dimensions"] for row in embeddings(captured).values()} == {8}
    assert api(judge).model.model_id != api(judge, dimensions=8).model.model_id


@pytest.mark.parametrize(
    ("fault", "error_class", "words"),
    [
        ("embedding_missing", "wrong_count", "texts, and"),
        ("embedding_text", "schema_violation", "an embedding is no list of numbers"),
    ],
)
def test_unusable_answer_is_paid_once_and_tried_again_later(
    captured: Pipeline, judge: SimulatedJudge, fault: str, error_class: str, words: str
) -> None:
    faulty = api(judge, f"{EMBEDDING_MODEL}:{fault}", budget=Budget(allow_unpriced=True, daily_tokens=10**6))
    (result,) = embed(captured, HOUR, embedder=faulty)
    assert (result.embedded, result.failed) == (0, result.texts)
    assert {row["embedding"] for row in embeddings(captured).values()} == {None}
    assert all(text.startswith(f"{error_class}: ") and words in text for text in result.errors.values())
    assert [row["result"] for row in calls(captured)] == ["unusable"]
    embed(captured, HOUR, embedder=faulty)
    assert len(calls(captured)) == 1
    assert pending(captured, faulty) == []
    assert pending(captured, faulty, seconds=16 * 60) == [partition_key(HOUR)]
    captured.do("UPDATE trajectory.trajectory_embeddings SET next_attempt_at = now() - interval '1 second'")
    embed(captured, HOUR, embedder=faulty)
    assert {row["failures"] for row in embeddings(captured).values()} == {2}
    assert pending(captured, faulty, seconds=16 * 60) == []


@pytest.mark.parametrize(("fault", "words"), [("embedding_nan", "not finite"), ("embedding_zero", "are 0")])
def test_text_with_an_embedding_without_direction_fails_alone(
    captured: Pipeline, judge: SimulatedJudge, fault: str, words: str
) -> None:
    faulty = api(judge, f"{EMBEDDING_MODEL}:{fault}", budget=Budget(allow_unpriced=True, daily_tokens=10**6))
    (result,) = embed(captured, HOUR, embedder=faulty)
    assert len({row["text_digest"] for row in embeddings(captured).values() if row["embedding"] is None}) == 1
    assert result.embedded == result.texts - result.failed > 0
    assert all(words in text for text in result.errors.values())


def test_other_dimensions_than_before_are_refused(captured: Pipeline, judge: SimulatedJudge) -> None:
    embedder = api(judge)
    embed(captured, HOUR, embedder=embedder)
    captured.do(
        "UPDATE trajectory.embedding_models SET dimensions = 63",
        "DELETE FROM trajectory.trajectory_embeddings",
    )
    (result,) = embed(captured, HOUR, embedder=embedder)
    assert result.embedded == 0
    assert all("have 64 numbers, and those of this model have 63" in text for text in result.errors.values())


@pytest.mark.parametrize("fault", ["server_error", "rate_limit_ms", "connection_dropped"])
def test_transient_failure_is_retried(captured: Pipeline, judge: SimulatedJudge, fault: str) -> None:
    judge.plan_faults([{"fault": fault, "times": 1}])
    (result,) = embed(captured, HOUR, embedder=api(judge))
    assert result.embedded == result.texts
    assert [row["purpose"] for row in calls(captured)] == ["first", "retry"]


@pytest.mark.parametrize("fault", ["unauthorized", "insufficient_quota"])
def test_provider_that_refuses_everything_fails_the_partition_and_keeps_its_texts(
    captured: Pipeline, judge: SimulatedJudge, fault: str
) -> None:
    judge.plan_faults([{"fault": fault}])
    with pytest.raises(ProviderDownError, match=r"^The embedding model('s provider| cannot be asked)"):
        embed(captured, HOUR, embedder=api(judge))
    assert wanted(captured) > 0
    assert embeddings(captured) == {}
    assert pending(captured, api(judge)) == [partition_key(HOUR)]
    judge.clear_faults()
    (result,) = embed(captured, HOUR, embedder=api(judge))
    assert result.embedded == result.texts


def test_server_that_is_not_there_fails_the_partition(captured: Pipeline, judge: SimulatedJudge) -> None:
    down = api(judge, base_url="http://127.0.0.1:9/v1", breaker_after=2)
    with pytest.raises(PipelineError, match="The embedding model's provider is down"):
        embed(captured, HOUR, embedder=replace(down, texts_per_call=1))
    assert only(captured.ask("SELECT spent_usd FROM trajectory.spend_totals WHERE scope = 'day'"))["spent_usd"] == 0


def test_slow_server_names_the_setting(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 5}}])
    (result,) = embed(captured, HOUR, embedder=api(judge, timeout_seconds=0.2, max_attempts=1))
    assert all("TRAJECTORY_EMBEDDING_TIMEOUT" in text for text in result.errors.values())
    assert {row["result"] for row in calls(captured)} == {"lost"}


def test_text_that_is_too_long_for_the_model_does_not_keep_others_from_it(
    captured: Pipeline, judge: SimulatedJudge
) -> None:
    run = embedding_run(captured)
    run.embed_partitions([HOUR])
    run_id = next(run_id for run_id, row in texts(captured).items() if row["text"])
    long = "UPDATE trajectory.search_texts SET text = repeat('long ', 9000), text_digest = 'long'"
    captured.do(f"{long} WHERE run_id = '{run_id}'")
    (result,) = embed(captured, HOUR, embedder=api(judge))
    assert set(result.errors) == {run_id}
    assert result.errors[run_id].startswith("context_too_long: ")
    assert result.embedded == result.texts - 1
    assert pending(captured, api(judge), seconds=10**6) == []


def test_budget_that_is_used_up_defers_and_a_higher_one_goes_on(captured: Pipeline, judge: SimulatedJudge) -> None:
    budget = Budget(prices=SIMULATED_PRICES, daily_usd=Decimal("0.000005"))
    poor = api(judge, texts_per_call=1, concurrency=1, budget=budget)
    (result,) = embed(captured, HOUR, embedder=poor)
    assert 0 < result.pending < result.texts
    assert result.pending + result.embedded == result.texts
    total = only(captured.ask("SELECT spent_usd FROM trajectory.spend_totals WHERE scope = 'day'"))
    assert total["spent_usd"] <= Decimal("0.000005")
    found = find_pending_embeddings(captured.database, poor, REDACTOR, captured.database.now())
    assert found.shortfall is None or found.partition_keys == []
    before = len(calls(captured))
    assert pending(captured, api(judge)) == [partition_key(HOUR)]
    (result,) = embed(captured, HOUR, embedder=api(judge))
    assert (result.embedded, result.pending) == (result.texts, 0)
    assert len(calls(captured)) == before + 1


def test_unpriced_model_is_refused_before_a_call(captured: Pipeline, judge: SimulatedJudge) -> None:
    with pytest.raises(JudgeError, match="No price is known for the model simulated-embedding"):
        embed(captured, HOUR, embedder=api(judge, budget=Budget()))
    assert judge.calls()["received"] == 0


def test_egress_off_sends_nothing_to_another_machine(captured: Pipeline, judge: SimulatedJudge) -> None:
    far = api(judge, base_url="http://192.0.2.1/v1", local_only=True)
    with pytest.raises(JudgeError, match="Set TRAJECTORY_EMBEDDING_BASE_URL to one here"):
        embed(captured, HOUR, embedder=far)


def test_denied_agent_is_not_sent_until_the_lists_change(captured: Pipeline, judge: SimulatedJudge) -> None:
    agent = captured.ask("SELECT agent_id FROM trajectory.trajectories LIMIT 1")[0]["agent_id"]
    denying = api(judge, access=JudgeAccessList(deny_agents=frozenset({agent})))
    (result,) = embed(captured, HOUR, embedder=denying)
    of_agent = {
        row["run_id"] for row in captured.ask("SELECT run_id FROM trajectory.trajectories WHERE agent_id = %s", agent)
    }
    refused = {run_id for run_id, row in embeddings(captured).items() if row["error_class"] == "denied"}
    assert refused
    assert refused <= of_agent
    assert result.denied == len(refused)
    assert pending(captured, denying) == []
    before = embeddings(captured)
    embed(captured, HOUR, embedder=denying)
    assert embeddings(captured) == before
    assert pending(captured, api(judge)) == [partition_key(HOUR)]
    (result,) = embed(captured, HOUR, embedder=api(judge))
    assert (result.denied, result.embedded) == (0, result.texts)


def test_nothing_of_a_text_that_was_erased_while_it_was_asked_about_is_stored(
    captured: Pipeline, judge: SimulatedJudge
) -> None:
    run = embedding_run(captured)
    run.embed_partitions([HOUR])
    run_id = next(run_id for run_id, row in texts(captured).items() if row["text"])
    embedder = api(judge)
    with captured.database.retrying() as connection, psycopg.connect(captured.database_url) as other:
        store = EmbeddingStore(connection, find_pgvector(other), embedder.model)
        found = store.wanted([partition_key(HOUR)])
        captured.do(f"DELETE FROM trajectory.search_texts WHERE run_id = '{run_id}'")
        unit = unit_vector([1.0, 2.0])
        assert not isinstance(unit, str)
        store.save(found, {one.text_digest: unit for one in found})
    assert run_id not in embeddings(captured)


@pytest.mark.heavy
def test_two_workers_at_once_pay_for_each_text_once(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.3}}])
    programs = [_start(captured, api(judge, texts_per_call=2)) for _ in range(2)]
    assert [program.wait(60) for program in programs] == [0, 0]
    assert sum(row["texts"] for row in calls(captured)) == wanted(captured)
    assert len(calls(captured)) == judge.calls()["received"]
    assert {row["embedding"] is None for row in embeddings(captured).values()} == {False}


@pytest.mark.heavy
def test_killed_worker_loses_no_more_than_its_calls_in_flight(captured: Pipeline, judge: SimulatedJudge) -> None:
    judge.plan_faults([{"fault": "slow", "params": {"seconds": 0.4}}])
    embedder = api(judge, texts_per_call=1, concurrency=1)
    program = _start(captured, embedder)
    deadline = time.monotonic() + 60
    while len(embeddings(captured)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    stored = {row["text_digest"] for row in embeddings(captured).values()}
    assert stored
    captured.do("UPDATE trajectory.verdict_locks SET expires_at = now() - interval '1 second'")
    judge.clear_faults()
    (result,) = embed(captured, HOUR, embedder=embedder)
    assert result.embedded == result.texts
    made = calls(captured)
    assert sum(row["texts"] for row in made) <= wanted(captured) + 1
    assert sum(row["result"] == "lost" for row in made) <= 1
    assert captured.ask("SELECT * FROM trajectory.verdict_locks") == []


def test_query_is_asked_for_once_and_not_for_long(
    captured: Pipeline, judge: SimulatedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever searches waits; by words something is found meanwhile."""
    embedder = api(judge, timeout_seconds=600)
    embed(captured, HOUR, embedder=embedder)
    before = len(calls(captured))
    monkeypatch.setattr(remote_embedder, "QUERY_TIMEOUT_SECONDS", 0.2)
    judge.plan_faults([{"fault": "hang"}])
    with pytest.raises(JudgeError, match="gave no embedding"):
        embed_query(captured.database, embedder, REDACTOR, "refund")
    assert len(calls(captured)) == before + 1


def test_query_is_embedded_by_the_model_that_search_uses(captured: Pipeline, judge: SimulatedJudge) -> None:
    embedder = api(judge)
    database = captured.database
    assert "No embedding is stored yet" in embed_query(database, embedder, REDACTOR, "refund").reason
    embed(captured, HOUR, embedder=embedder)
    before = len(calls(captured))
    found = embed_query(database, embedder, REDACTOR, "a refund")
    assert found.vector is not None
    assert len(found.vector) == 64
    assert calls(captured)[-1]["texts"] == 1
    assert len(calls(captured)) == before + 1
    other = embed_query(database, api(judge, dimensions=8), REDACTOR, "refund")
    assert (other.vector, "which has not caught up yet" in other.reason) == (None, True)
    judge.plan_faults([{"fault": "embedding_zero"}])
    with pytest.raises(JudgeError, match="unusable: all its numbers are 0"):
        embed_query(database, embedder, REDACTOR, "refund")
    with pytest.raises(BudgetExhausted):
        embed_query(database, api(judge, budget=Budget(prices=SIMULATED_PRICES, daily_usd=Decimal(0))), REDACTOR, "x")


def _start(pipeline: Pipeline, embedder: RemoteEmbedder) -> "subprocess.Popen[bytes]":
    pickled = pickle.dumps((pipeline, HOUR, embedder))
    program = (
        "import pickle; from trajectory_pipeline_tests.pipeline.embedding import embed;"
        f" pipeline, hour, embedder = pickle.loads({pickled!r}); embed(pipeline, hour, embedder=embedder)"
    )
    return subprocess.Popen([sys.executable, "-c", program])
