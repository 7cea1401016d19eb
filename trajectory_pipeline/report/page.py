"""Makes the report's HTML from its tables."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from trajectory_pipeline.partition_keys import partition_key
from trajectory_pipeline.quality.intervals import wilson_interval
from trajectory_pipeline.report import charts
from trajectory_pipeline.report.quality import quality_part
from trajectory_pipeline.report.trajectory_view import TEMPLATES, Redact, trajectory_view
from trajectory_pipeline.settings import QualitySettings
from trajectory_pipeline.storage.postgres.database import TrajectoryDatabase
from trajectory_pipeline.storage.postgres.report import report_tables, reported_range, runs_worth_reading

Row = dict[str, Any]

WORTH_READING = 10
_DAYS_SHOWN_ONE_BY_ONE = timedelta(days=21)
_MOST_AGENTS_DRAWN = 30
_MOST_ROWS = 100
"""Of a table; all rows are in the table's file."""


@dataclass(frozen=True)
class Report:
    """The page, and the tables that it was made of, by name."""

    html: str
    tables: dict[str, list[Row]]


def build_report(
    database: TrajectoryDatabase,
    redact: Redact,
    first: datetime | None = None,
    after_last: datetime | None = None,
    quality: QualitySettings | None = None,
) -> Report:
    """Return the report on runs that ended in a range of hours; without limits, on all.

    Args:
        database: the trajectory database.
        redact: applied to every text of a trajectory that the page shows.
        first: first hour.
        after_last: the hour after the last one.
        quality: bars of the gates; their defaults if none are given.

    Raises:
        SinkError: the database cannot be read.
    """
    keys = _key(first), _key(after_last)
    period = _period(database, first, after_last)
    tables = report_tables(database, *keys, period)
    for name in ("periods", "agents", "models", "tools"):
        tables[name] = [_with_interval(row) for row in tables[name]]
    tables["families"] = [_family(row, redact) for row in tables["families"]]
    part = quality_part(database, quality or QualitySettings.model_construct(), *keys)
    tables |= part.tables
    (totals,) = tables["totals"]
    chosen = runs_worth_reading(database, *keys, WORTH_READING)
    views = [trajectory_view(run.trajectory, run.outcome, redact) for run in chosen]
    judged_agents = [row for row in tables["agents"] if row["judged"]][:_MOST_AGENTS_DRAWN]
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            style=Markup((TEMPLATES / "style.css").read_text()),  # noqa: S704 - our own file
            version=version("trajectory-pipeline"),
            made_at=datetime.now(UTC),
            period=period,
            totals=totals,
            tables=tables,
            quality=part,
            views=views,
            judged_interval=wilson_interval(totals["judged"], totals["runs"]),
            success_interval=wilson_interval(totals["success"], totals["judged"]),
            failure_interval=wilson_interval(totals["failure"], totals["judged"]),
            disagree_interval=wilson_interval(totals["disagrees"], totals["judged"]),
            charts={
                "periods": _drawn(charts.outcomes_by_period, tables["periods"]),
                "agents": _drawn(charts.success_by_agent, judged_agents),
                "failures": _drawn(charts.failures_by_mode, tables["failures"]),
                "reliability": _drawn(charts.reliability, _reliability(tables["calibrations"])),
                "cost": _drawn(charts.cost_by_period, tables["periods"]),
            },
        )
    )
    return Report(html, tables)


def _key(hour: datetime | None) -> str | None:
    return None if hour is None else partition_key(hour)


def _period(database: TrajectoryDatabase, first: datetime | None, after_last: datetime | None) -> str:
    held = reported_range(database)
    if held is None:
        return "day"
    start, end = first or held[0], after_last or held[1]
    return "day" if end - start <= _DAYS_SHOWN_ONE_BY_ONE else "week"


def _with_interval(row: Row, of: int | None = None) -> Row:
    """Return a row with the share of its successes; ``of`` is what of, if not all judged runs."""
    total = row["judged"] if of is None else of
    low, high = wilson_interval(row["success"], total) or (None, None)
    return {**row, "share": row["success"] / total if total else None, "low": low, "high": high}


def _family(row: Row, redact: Redact) -> Row:
    """Return a task family with its success rate as ``trajectory.task_family_outcomes`` has it."""
    decided = row["success"] + row["partial_success"] + row["failure"]
    return {**_with_interval(row, decided), "example": redact(row["example"]) if row["example"] else None}


def _reliability(calibrations: list[Row]) -> list[Row]:
    """Return the points of the reliability curves of P(outcome is right), before and after calibration."""
    names = {"raw": "raw confidence", "map": "calibrated"}
    return [
        {"curve": names[name], **point}
        for row in calibrations
        if row["target"] == "correct"
        for name in names
        for point in row["curve"][name] or ()
    ]


def _drawn(draw: Any, rows: list[Row]) -> Markup | None:
    # The library's SVG, with our values escaped by it.
    return Markup(draw(rows)) if rows else None  # noqa: S704


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals["most_rows"] = _MOST_ROWS
    return environment
