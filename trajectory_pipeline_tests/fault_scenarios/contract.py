"""What must hold after judging the sample under a mood, and again after the judge has healed.

Belongs here: every check, each a sentence where it fails. Does not belong here: running (``sweep``).

Only sentences, no ``assert``: a sweep goes on and tells all of them.
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
"""Columns of a verdict that how it was reached decides, and not the judge's answer."""


def books_agree(pipeline: Pipeline, books: Mapping[str, Any]) -> Iterator[str]:
    """The server's books, call by call, with the attempts; these with the accounts and the verdicts."""
    attempts = pipeline.ask("SELECT * FROM trajectory.verdict_attempts")
    if books["in_flight"]:
        yield f"{books['in_flight']} calls are open at the server"
    lost = [attempt["cost_usd"] for attempt in attempts if attempt["result"] == "lost"]
    # One that was given up may never have reached the server.
    if not len(attempts) - len(lost) <= books["received"] <= len(attempts):
        yield f"the server received {books['received']} calls; of {len(attempts)} attempts {len(lost)} are lost"
    charged = {f"req_{call['id'].rpartition('-')[2]}": Decimal(call["cost_usd"]) for call in books["calls"]}
    for attempt in attempts:
        if attempt["result"] == "lost":
            if attempt["cost_usd"] != attempt["reserved_usd"]:
                yield f"{attempt['attempt_id']} is lost and does not count at what was reserved"
            continue
        their, ours = charged.pop(attempt["request_id"], None), attempt["cost_usd"]
        if their is None:
            yield f"{attempt['attempt_id']} is in no call of the server's books"
        elif ours is None and billable_cost(attempt).usd < their and attempt["result"] != "error":
            yield f"{attempt['attempt_id']} has no price and counts less than the server charged"
        elif their != (ours or Decimal(0)) and not (ours is None and attempt["result"] != "error"):
            yield f"{attempt['attempt_id']} costs {ours} and the server charged {their}"
    # Which of the server's calls the lost ones are nobody knows: they are looked at all together.
    if len(charged) > len(lost) or sum(charged.values(), Decimal(0)) > sum(lost, Decimal(0)):
        yield f"{len(lost)} calls are lost at {sum(lost)} USD, and {len(charged)} at the server are not in our books"
    spent, cost = sum((billable_cost(attempt).usd for attempt in attempts), Decimal(0)), _sum(attempts)
    for scope in ("day", "organization", "materialization"):
        booked = pipeline.ask("SELECT * FROM trajectory.spend_totals WHERE scope = %s", scope)
        if sum((row["spent_usd"] for row in booked), Decimal(0)) != spent:
            yield f"the accounts of scope {scope} do not hold what the attempts took"
        if any(row["reserved_usd"] or row["reserved_tokens"] for row in booked):
            yield f"an account of scope {scope} still reserves something"
    verdicts = pipeline.ask("SELECT * FROM trajectory.verdicts")
    if _sum(verdicts) != cost or sum(row["attempts"] for row in verdicts) != len(attempts):
        yield "the verdicts do not add up to the attempts"


def nothing_is_made_up(pipeline: Pipeline, healthy: Mapping[str, Row] | None) -> Iterator[str]:
    """No score where nothing was judged; where something was, what a healthy judge's answer gives."""
    for row in verdicts(pipeline).values():
        judged = row["verdict_status"] == "judged"
        if any((row[name] is not None) != judged for name in SCORES):
            yield f"{row['run_id']} is {row['verdict_status']} and its scores are {[row[name] for name in SCORES]}"
        if judged and healthy is not None:
            differing = [name for name in row if name not in _DIFFERS and row[name] != healthy[row["run_id"]].get(name)]
            if differing:
                yield f"{row['run_id']} differs from a healthy judge's verdict in {', '.join(differing)}"


def each_run_has_one_status(pipeline: Pipeline, *, down: int) -> Iterator[str]:
    """One verdict a run; none only where the provider was down, and then no call either."""
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
        yield f"{len(without)} runs have no verdict, though the provider was never found to be down"
    if any(row["calls"] for row in without):
        yield "a run without a verdict was asked about"
    if pipeline.ask("SELECT 1 AS x FROM trajectory.verdict_locks"):
        yield "claims are left"


def all_is_final(pipeline: Pipeline) -> Iterator[str]:
    """Every run has come to an end, and what a verdict needed was answered once."""
    open_ones = [row["run_id"] for row in verdicts(pipeline).values() if row["verdict_status"] not in FINAL_STATUSES]
    runs = pipeline.ask("SELECT count(*) AS n FROM trajectory.trajectories")[0]["n"]
    if open_ones or len(verdicts(pipeline)) != runs:
        yield f"{len(open_ones)} verdicts are open, {len(verdicts(pipeline))} of {runs} runs have one"
    answered = pipeline.ask(
        "SELECT v.run_id, v.windows, count(a.attempt_id) FILTER (WHERE a.result = 'answered') AS answers"
        " FROM trajectory.verdicts v LEFT JOIN trajectory.verdict_attempts a USING (run_id, verdict_key)"
        " GROUP BY v.run_id, v.verdict_key, v.windows"
    )
    for row in answered:
        wanted = row["windows"] or 0
        if row["answers"] != wanted + (wanted > 1):
            yield f"{row['run_id']} was shown in {wanted} prompts and answered {row['answers']} times"


def kept(before: Mapping[str, Row], after: Mapping[str, Row]) -> Iterator[str]:
    """What was final stays as it was, to the last column."""
    for run_id, row in before.items():
        if row["verdict_status"] in FINAL_STATUSES and after.get(run_id) != row:
            yield f"the verdict on {run_id} was final and has changed"


def verdicts(pipeline: Pipeline) -> dict[str, Row]:
    return {row["run_id"]: row for row in pipeline.ask("SELECT * FROM trajectory.verdicts")}


def _sum(rows: list[Row]) -> Decimal:
    return sum((row["cost_usd"] or Decimal(0) for row in rows), Decimal(0))
