"""The charts of the report, as SVG whose colors follow the page: light or dark.

Each is drawn twice, for a wide page and for a phone, where the labels of a scaled drawing could not be read. The style
sheet shows one of them.
"""

import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

Row = dict[str, Any]

OUTCOMES = ("success", "partial_success", "failure", "unknown")
# Okabe and Ito's colors: told apart by people with any color vision, on light and dark ground.
_PALETTE = {"success": "#009E73", "partial_success": "#E69F00", "failure": "#D55E00", "unknown": "#8C8C8C"}
_OWNERS = ("#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#009E73", "#8C8C8C")
# Colors that no mark has: they are replaced by variables of the page's style sheet.
_TEXT, _GRID = "#010203", "#040506"
_VARIABLES = {_TEXT: "var(--text)", _GRID: "var(--line)"}
_WIDTHS = {"wide": 640, "narrow": 320}
"""In pixels, by class of the style sheet."""


def outcomes_by_period(rows: Sequence[Row]) -> str:
    """Return stacked bars of judged outcomes by day or week."""
    data = [
        {"period": row["period"], "outcome": outcome, "order": order, "runs": row[outcome]}
        for row in rows
        for order, outcome in enumerate(OUTCOMES)
    ]
    return _svg(
        _chart(data)
        .mark_bar()
        .encode(
            x=alt.X("period:N", title=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("runs:Q", title="judged runs"),
            order="order:O",
            color=_outcome_color(),
        )
    )


def success_by_agent(rows: Sequence[Row]) -> str:
    """Return, by agent, the share of successes with its interval; rows have ``share``, ``low`` and ``high``."""
    base = _chart(rows).encode(y=alt.Y("agent:N", title=None, sort=None, axis=alt.Axis(labelLimit=200)))
    ranges = base.mark_rule(color=_PALETTE["unknown"], strokeWidth=2).encode(
        x=alt.X(
            "low:Q",
            scale=alt.Scale(domain=[0, 1]),
            title="success, of judged runs",
            axis=_percent_axis(),
        ),
        x2="high:Q",
    )
    points = base.mark_point(color=_PALETTE["success"], filled=True, size=70, opacity=1).encode(x="share:Q")
    return _svg(ranges + points)


def failures_by_mode(rows: Sequence[Row]) -> str:
    """Return bars of failed runs by mode, colored by who failed."""
    owners = sorted({row["failure_owner"] for row in rows})
    return _svg(
        _chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("sum(runs):Q", title="runs"),
            y=alt.Y("failure_mode:N", title=None, sort="-x", axis=alt.Axis(labelLimit=200)),
            color=alt.Color(
                "failure_owner:N",
                title="owner",
                scale=alt.Scale(domain=owners, range=[_OWNERS[at % len(_OWNERS)] for at in range(len(owners))]),
            ),
        )
    )


def reliability(rows: Sequence[Row]) -> str:
    """Return curves of how often verdicts are right by predicted probability, with the diagonal of a perfect map."""
    diagonal = (
        _chart([{"predicted": 0.0, "observed": 0.0}, {"predicted": 1.0, "observed": 1.0}])
        .mark_line(color=_PALETTE["unknown"], strokeDash=[4, 4])
        .encode(x="predicted:Q", y="observed:Q")
    )
    scale, axis = alt.Scale(domain=[0, 1]), _percent_axis()
    curves = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=60))
        .encode(
            x=alt.X("predicted:Q", scale=scale, axis=axis, title="predicted"),
            y=alt.Y("observed:Q", scale=scale, axis=axis, title="right, by labels"),
            color=alt.Color(
                "curve:N",
                title=None,
                scale=alt.Scale(domain=["raw confidence", "calibrated"], range=["#D55E00", "#0072B2"]),
            ),
        )
    )
    return _svg(diagonal + curves, height=260)


def cost_by_period(rows: Sequence[Row]) -> str:
    """Return bars of the cost of judging by day or week; rows have ``period`` and ``judge_cost_usd``."""
    data = [{"period": row["period"], "usd": float(row["judge_cost_usd"] or 0)} for row in rows]
    return _svg(
        _chart(data)
        .mark_bar(color="#0072B2")
        .encode(
            x=alt.X("period:N", title=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("usd:Q", title="USD"),
        ),
        height=140,
    )


def _chart(rows: Sequence[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) for row in rows]))


def _percent_axis() -> alt.Axis:
    # Few labels: on a phone more would touch each other.
    return alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1])


def _outcome_color() -> alt.Color:
    return alt.Color(
        "outcome:N",
        title="outcome",
        scale=alt.Scale(domain=list(OUTCOMES), range=[_PALETTE[outcome] for outcome in OUTCOMES]),
    )


def _svg(chart: alt.Chart | alt.LayerChart, height: int | None = None) -> str:
    """Return both drawings; ``height`` is that of the plot, in pixels."""
    return "".join(_drawing(chart, name, height) for name in _WIDTHS)


def _drawing(chart: alt.Chart | alt.LayerChart, name: str, height: int | None) -> str:
    narrow = name == "narrow"
    # Fonts of readers may be wider than the one that the drawing is measured with.
    padding = {"left": 20 if narrow else 24, "right": 8 if narrow else 24, "top": 8, "bottom": 8}
    # The whole drawing has the width of a phone: labels take from the plot what they need.
    sized = chart.properties(
        width=_WIDTHS[name], padding=padding, autosize=alt.AutoSizeParams(type="fit-x" if narrow else "pad")
    )
    if height:
        sized = sized.properties(height=height)
    legend_columns = {"columns": 2} if narrow else {"columnPadding": 24}
    spec = (
        sized.configure(background="transparent", font="system-ui, sans-serif")
        .configure_axis(
            labelColor=_TEXT, titleColor=_TEXT, gridColor=_GRID, domainColor=_GRID, tickColor=_GRID, titleFontWeight=400
        )
        .configure_legend(labelColor=_TEXT, titleColor=_TEXT, orient="bottom", titleFontWeight=400, **legend_columns)
        .configure_view(strokeWidth=0)
        .to_dict()
    )
    svg = vl_convert.vegalite_to_svg(spec)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    # Scales with the page.
    return re.sub(
        r'<svg([^>]*?) width="[^"]*" height="[^"]*"', rf'<svg aria-hidden="true" class="{name}"\1', svg, count=1
    )
