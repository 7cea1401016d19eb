"""What must hold after judging the sample in a scenario, and again after the judge has recovered.

Each check yields a sentence for each violation. None asserts, so that a sweep reports all violations.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from trajectory_pipeline.schema.enums import FINAL_STATUSES
from trajectory_pipeline.storage.postgres.spend_ledger import billable_cost
from trajectory_pipeline_tests.pipeline.materializing import SCORES, Pipeline, Row

_DIFFERS = frozenset(
    {"updated_at", "created_at", "judged_at", "attempts", "cost_usd", "model", "response_format", "simulated"}
    | {"input_tokens", "cached_input_tokens", "output_tokens", "failures", "next_attempt_at"}
)
"""Columns of a verdict that depend on how it was reached, and not on the judge's answer."""


def costs_agree(pipeline: Pipeline, usage_log: Mapping[str, Any]) -> Iterator[str]:
    """The usage log of the server equals the recorded calls, and these equal the spend totals and the verdicts."""
    attempts = pipeline.ask("SELECT * FROM trajectory.verdict_attempts")
    if usage_log["in_flight"]:
        yield f"{usage_log['in_flight']} calls are in flight at the server"
    lost = [attempt["cost_usd"] for attempt in attempts if attempt["result"] == "lost"]
    # A lost call may never have reached the server.
    received = usage_log["received"]
    if not len(attempts) - len(lost) <= received <= len(attempts):
        yield f"the server received {received} calls; of {len(attempts)} recorded ones {len(lost)} are lost"
    charged = {f"req_{call['id'].rpartition('-')[2]}": Decimal(call["cost_usd"]) for call in usage_log["calls"]}
    for attempt in attempts:
        if attempt["result"] == "lost":
            if attempt["cost_usd"] != attempt["reserved_usd"]:
                yield f"{attempt['attempt_id']} is lost and does not cost what was reserved"
            continue
        charged_usd, recorded_usd = charged.pop(attempt["request_id"], None), attempt["cost_usd"]
        if charged_usd is None:
            yield f"{attempt['attempt_id']} is not in the usage log of the server"
        elif recorded_usd is None and billable_cost(attempt).usd < charged_usd and attempt["result"] != "error":
            yield f"{attempt['attempt_id']} has no price and counts less than the server charged"
        elif charged_usd != (recorded_usd or Decimal(0)) and not (
            recorded_usd is None and attempt["result"] != "error"
        ):
            yield f"{attempt['attempt_id']} costs {recorded_usd} and the server charged {charged_usd}"
    # No request id connects a lost call with a call of the server: they are compared in total.
    if len(charged) > len(lost) or sum(charged.values(), Decimal(0)) > sum(lost, Decimal(0)):
        yield f"{len(lost)} calls are lost at {sum(lost)} USD, and {len(charged)} at the server are not recorded"
    spent, cost = sum((billable_cost(attempt).usd for attempt in attempts), Decimal(0)), _sum(attempts)
    for scope in ("day", "organization", "materialization"):
        totals = pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = %s", scope)
        if sum((row["spent_usd"] for row in totals), Decimal(0)) != spent:
            yield f"the spend totals of scope {scope} differ from the recorded calls"
        if any(row["reserved_usd"] or row["reserved_tokens"] for row in totals):
            yield f"a spend total of scope {scope} still has a reservation"
    verdicts = pipeline.ask("SELECT * FROM trajectory.verdicts")
    if _sum(verdicts) != cost or sum(row["attempts"] for row in verdicts) != len(attempts):
        yield "the verdicts do not add up to the recorded calls"


def no_value_is_invented(pipeline: Pipeline, healthy: Mapping[str, Row] | None) -> Iterator[str]:
    """A run that was not judged has no score; one that was has the verdict that a healthy judge gives."""
    for row in verdicts(pipeline).values():
        judged = row["verdict_status"] == "judged"
        if any((row[name] is not None) != judged for name in SCORES):
            yield f"{row['run_id']} is {row['verdict_status']} and its scores are {[row[name] for name in SCORES]}"
        if judged and healthy is not None:
            differing = [name for name in row if name not in _DIFFERS and row[name] != healthy[row["run_id"]].get(name)]
            if differing:
                yield f"{row['run_id']} differs from a healthy judge's verdict in {', '.join(differing)}"


def each_run_has_one_status(pipeline: Pipeline, *, down: int) -> Iterator[str]:
    """Each run has one verdict. It may have none, and then no call either, only where the provider was down."""
    per_run = pipeline.ask(
        "SELECT t.run_id, (SELECT count(*) FROM trajectory.verdicts v WHERE v.run_id = t.run_id) AS verdicts,"
        " (SELECT count(*) FROM trajectory.verdict_attempts a WHERE a.run_id = t.run_id) AS calls"
        " FROM trajectory.trajectories t"
    )
    several = [row["run_id"] for row in per_run if row["verdicts"] > 1]
    without = [row for row in per_run if row["verdicts"] == 0]
    if several:
        yield f"{len(several)} runs have more than one verdict"
    if without and not down:
        yield f"{len(without)} runs have no verdict, though the provider was never down"
    if any(row["calls"] for row in without):
        yield "a run without a verdict has a recorded call"
    if pipeline.ask("SELECT 1 AS x FROM trajectory.verdict_locks"):
        yield "verdict locks remain"


def all_verdicts_are_final(pipeline: Pipeline) -> Iterator[str]:
    """Every run has a final verdict, and each prompt that it needed was answered once."""
    open_runs = [row["run_id"] for row in verdicts(pipeline).values() if row["verdict_status"] not in FINAL_STATUSES]
    runs = pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories")[0]["n"]
    if open_runs or len(verdicts(pipeline)) != runs:
        yield f"{len(open_runs)} verdicts are open, {len(verdicts(pipeline))} of {runs} runs have one"
    answered = pipeline.ask(
        "SELECT v.run_id, v.windows, count(a.attempt_id) FILTER (WHERE a.result = 'answered') AS answers"
        " FROM trajectory.verdicts v LEFT JOIN trajectory.verdict_attempts a USING (run_id, verdict_key)"
        " GROUP BY v.run_id, v.verdict_key, v.windows"
    )
    for row in answered:
        windows = row["windows"] or 0
        if row["answers"] != windows + (windows > 1):
            yield f"{row['run_id']} was shown in {windows} windows and answered {row['answers']} times"


def final_verdicts_are_unchanged(before: Mapping[str, Row], after: Mapping[str, Row]) -> Iterator[str]:
    """A final verdict does not change in any column."""
    for run_id, row in before.items():
        if row["verdict_status"] in FINAL_STATUSES and after.get(run_id) != row:
            yield f"the verdict on {run_id} was final and has changed"


def verdicts(pipeline: Pipeline) -> dict[str, Row]:
    return {row["run_id"]: row for row in pipeline.ask("SELECT * FROM trajectory.verdicts")}


def _sum(rows: list[Row]) -> Decimal:
    return sum((row["cost_usd"] or Decimal(0) for row in rows), Decimal(0))
