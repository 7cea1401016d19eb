"""How far signals tell that a heuristic success is none, and what `error_recovered` finds, on the labels of the sample.

.venv/bin/python -m benchmarks.heuristic
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trajectory_pipeline.conversion.outcome_rules import DOUBTS
from trajectory_pipeline.conversion.reference import convert_run
from trajectory_pipeline.demo.letta_sample.labels import FIRST_ANNOTATOR, label_records
from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline_tests.conversion.sample_runs import partition_of, story_runs

PRIOR_RUNS = 10
"""A signal's share of successes is shrunk towards that of all heuristic successes, as if by that many more runs."""
FEWEST_RUNS, LEAST_LIFT = 5, 1.5
"""Below either, a signal lowers no confidence."""

RECOVERED = frozenset(
    ["rl-quint", "rl-petrov", "lr-quill", "tf-import-b", "tf-all", "nw-euro-2", "tp-moor-2", "hb-memerr", "lr-report"]
)
NOT_RECOVERED = frozenset({"rl-felt", "tp-domain-2"})
"""Runs of which whoever recorded the sample says so, by the key of their label."""

Row = Mapping[str, Any]
Test = Callable[[Row], bool]

CANDIDATES: dict[str, Test] = {
    **{doubt.name: doubt.holds for doubt in DOUBTS},
    "last tool call failed": lambda signals: signals["last_tool_call_failed"] is True,
    "any tool error": lambda signals: signals["tool_errors"] > 0,
    "loop": lambda signals: signals["longest_cycle"] > 0,
    "repeated call": lambda signals: signals["repeated_calls"] > 0,
    "no tool call": lambda signals: signals["tool_calls"] == 0,
    "denied call": lambda signals: signals["denied_approvals"] > 0,
    "context over 80 % full": lambda signals: (signals["context_fill"] or 0) > 0.8,
    "empty final answer": lambda signals: signals["empty_final_answer"] is True,
    "positive feedback": lambda signals: signals["positive_feedback"] > 0,
}


@dataclass(frozen=True)
class Lift:
    """What came of the heuristic successes with a signal: of ``runs``, so many are ``successes`` by label."""

    runs: int
    successes: int
    base: float

    @property
    def lift(self) -> float:
        """How much likelier it is that such a run is no success than that any heuristic success is none."""
        return (1 - self.successes / self.runs) / (1 - self.base)

    @property
    def factor(self) -> float:
        """The shrunken share of successes, as a part of that of all heuristic successes."""
        return (self.successes + PRIOR_RUNS * self.base) / (self.runs + PRIOR_RUNS) / self.base


def labeled_rows() -> list[tuple[Row, Row]]:
    """Return each trajectory of the sample with its label."""
    labels = label_records(FIRST_ANNOTATOR)
    return [(convert_run(raw, partition_of(raw)), labels[raw["run_id"]]) for raw in story_runs()]


def lifts(rows: Iterable[tuple[Row, Row]]) -> dict[str, Lift]:
    """Return the lift of each candidate that a heuristic success has."""
    pool = [
        (row["signals"], label["outcome"] == "success") for row, label in rows if row["heuristic_outcome"] == "success"
    ]
    base = sum(success for _, success in pool) / len(pool)
    found = {}
    for name, holds in CANDIDATES.items():
        of_signal = [success for signals, success in pool if holds(signals)]
        if of_signal:
            found[name] = Lift(len(of_signal), sum(of_signal), base)
    return found


def success_after_last_error(row: Row) -> bool:
    """Return ``error_recovered`` as it was before signals version 2: whether the last return is no error."""
    return row["signals"]["tool_errors"] > 0 and not row["signals"]["last_tool_call_failed"]


def same_purpose_succeeded(row: Row) -> bool:
    """Return whether ``error_recovered`` is true."""
    return row["signals"]["error_recovered"] is True


def recovery(rows: Iterable[tuple[Row, Row]], test: Test) -> tuple[int, int, int]:
    """Return how many runs a definition finds, how many of them did recover, and how many did in all."""
    known = {label["key"]: test(row) for row, label in rows if label["key"] in RECOVERED | NOT_RECOVERED}
    found = [key for key, recovered in known.items() if recovered]
    return len(found), sum(key in RECOVERED for key in found), len(RECOVERED)


def main() -> None:
    """Print both tables."""
    rows = labeled_rows()
    print("Heuristic successes by signal: which are none, by label")
    for name, found in lifts(rows).items():
        low, high = wilson_interval(found.runs - found.successes, found.runs) or (0.0, 1.0)
        used = next((f", factor {doubt.factor}" for doubt in DOUBTS if doubt.name == name), "")
        print(
            f"{name:24} {found.runs - found.successes:3} of {found.runs:3} ({low:.2f} to {high:.2f})"
            f"  lift {found.lift:4.2f}  shrunken {found.factor:4.2f}{used}"
        )
    print(f"all {len([row for row, _ in rows if row['heuristic_outcome'] == 'success'])} runs")
    print("error_recovered, on the runs that are known to have recovered or not")
    for test in (success_after_last_error, same_purpose_succeeded):
        count, right, known = recovery(rows, test)
        print(f"{test.__name__:24} precision {right}/{count}  recall {right}/{known}")


if __name__ == "__main__":
    main()
