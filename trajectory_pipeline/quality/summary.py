"""The numbers of ``judge_quality`` as short tables of text, for a page and for a terminal."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trajectory_pipeline.schema.quality import Comparison, Metric, Slice

HEADER = ("policy", "who", "criterion", "runs", "agreement", "kappa", "alpha", "other")
SLICE_HEADER = ("policy", "slice", "value", "runs", "agreement", "kappa", "failure_recall")

_WHO = {
    Comparison.JUDGE_PEOPLE: "judge and people",
    Comparison.PEOPLE: "people",
    Comparison.JUDGE_ITSELF: "judge again",
}
_MAIN = (Metric.AGREEMENT, Metric.KAPPA, Metric.ALPHA)

Row = Mapping[str, Any]
Group = dict[str, Row]


def summary_rows(rows: Iterable[Row], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return a row for each comparison and criterion over all runs: each number with its interval.

    ``names``: how a policy is called, by its id.
    """
    return [
        (
            names.get(policy_id, policy_id),
            _WHO[Comparison(comparison)] + (f" {value}" if value else ""),
            criterion,
            _runs(group),
            *(number(group.get(metric)) for metric in _MAIN),
            "; ".join(f"{metric} {number(row)}" for metric, row in group.items() if metric not in _MAIN),
        )
        for (policy_id, comparison, criterion, kind, value), group in _grouped(rows).items()
        if kind in (Slice.ALL, Slice.ANNOTATORS)
    ]


def slice_rows(rows: Iterable[Row], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Return a row for each slice of the outcome: by agent, model, length, language and week."""
    shown = (Metric.AGREEMENT, Metric.KAPPA, Metric.FAILURE_RECALL)
    return [
        (names.get(policy_id, policy_id), kind, value, _runs(group), *(number(group.get(metric)) for metric in shown))
        for (policy_id, _, _, kind, value), group in _grouped(rows).items()
        if kind not in (Slice.ALL, Slice.ANNOTATORS)
    ]


def confusion_rows(rows: Sequence[Row], names: Mapping[str, str], criterion: str) -> list[tuple[str, ...]]:
    """Return policy, what people said, what the judge said, and how often, for one criterion."""
    return [
        (names.get(row["policy_id"], row["policy_id"]), row["person_value"], row["judge_value"], str(row["pairs"]))
        for row in rows
        if row["criterion"] == criterion
    ]


def number(row: Row | None) -> str:
    """Return a value with its interval: ``0.53 [0.45–0.61]``; a dash where it is not defined."""
    if row is None or row["value"] is None:
        return "–"
    interval = "" if row["low"] is None else f" [{row['low']:z.2f}–{row['high']:z.2f}]"
    return f"{row['value']:z.2f}{interval}"


def _runs(group: Group) -> str:
    row = group.get(Metric.AGREEMENT) or next(iter(group.values()))
    return str(row["runs"])


def _grouped(rows: Iterable[Row]) -> dict[tuple[str, str, str, str, str], Group]:
    groups: dict[tuple[str, str, str, str, str], Group] = defaultdict(dict)
    for row in rows:
        key = (row["policy_id"], row["comparison"], row["criterion"], row["slice"], row["slice_value"])
        groups[key][row["metric"]] = row
    return groups
