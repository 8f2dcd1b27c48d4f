"""Rows in, figure out: pure functions, the same colour for the same Recipe everywhere.

This file does not know where rows come from or where a figure is put.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mcp_core.results import RequestRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

# At least 3:1 on the light and the dark background, so that one mapping serves both themes.
PALETTE = (
    "#2f7de1",
    "#d9631e",
    "#1f9d6b",
    "#c2458f",
    "#8b6fd8",
    "#b58105",
    "#1c93a8",
    "#d9485f",
    "#6b8e23",
    "#8a7f72",
)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "hexagon", "cross")
FAILED_COLOUR = "#d9485f"
MOST_POINTS = 180
# Names under which a live chart's legend fits into one row of a third of the page, and rows at most.
_LEGEND_ROW_LETTERS, _LEGEND_ROWS = 30, 3
MOST_REQUESTS = 200

Points = Sequence[tuple[float, float | None]]


class Mark(NamedTuple):
    """Something that happened, as a line across the time axis (seconds since the epoch)."""

    at_s: float
    colour: str


class _Bar(NamedTuple):
    """One stretch of one request."""

    index: int
    start_s: float
    length_s: float


def colour_of(fingerprint: str) -> str:
    """One of ten colours for a Recipe's fingerprint; ten are few, so ``symbol_of`` goes with it."""
    return PALETTE[int(fingerprint[:8], 16) % len(PALETTE)]


def symbol_of(fingerprint: str) -> str:
    """A plotly marker symbol for a Recipe's fingerprint, independent of its colour."""
    return SYMBOLS[int(fingerprint[8:16], 16) % len(SYMBOLS)]


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float | None]]:
    """At most about ``most`` points: each the highest of its stretch, so that a peak is never lost.

    A stretch without any value stays a gap.
    """
    stride = -(-len(points) // most) or 1
    return [_highest(points[start : start + stride]) for start in range(0, len(points), stride)]


def live_chart(
    series: Mapping[str, Points],
    unit: str,
    *,
    span: tuple[float, float],
    top: float | None = None,
    decimals: int = 1,
    extremes: tuple[Points, Points] | None = None,
    marks: Sequence[Mark] = (),
) -> dict[str, Any]:
    """An ECharts option: lines over time. Points are (seconds since the epoch, value); None is a gap.

    ``span`` are the two ends of the time axis (seconds), ``top`` fixes the upper end of the value axis.
    Whole numbers (``decimals`` 0) get no fractions on their axis. ``extremes`` are lowest and highest values, drawn
    as a band behind the first line; ``marks`` are vertical lines.
    """
    lines = [_line(name, points) for name, points in series.items()]
    if lines and marks:
        lines[0] |= _mark_lines([mark for mark in marks if span[0] <= mark.at_s <= span[1]])
    whole = {"minInterval": 1} if decimals == 0 else {}
    return {
        "animation": False,
        "color": list(PALETTE),
        "grid": {"left": 0, "right": 18, "top": _legend_px(series), "bottom": 0, "containLabel": True},
        "legend": {
            "show": len(series) > 1,
            "data": list(series),
            "type": "plain" if len(series) <= _LEGEND_ROWS else "scroll",
            "top": 0,
            "left": 0,
            "icon": "roundRect",
            "itemWidth": 14,
            "itemHeight": 4,
        },
        "tooltip": {"trigger": "axis", "confine": True, "valueFormatter": _printf(unit, decimals)},
        "xAxis": _time_axis(span),
        "yAxis": {"type": "value", "min": 0, "splitNumber": 2} | _value_labels(unit) | whole | _value_end(top),
        "series": [*lines, *(_band(*extremes) if extremes else ())],
    }


def _legend_px(series: Collection[str]) -> int:
    """Room above the lines: none for one, a row for short names, a row each for the names of two workers."""
    if len(series) < 2:
        return 8
    beside = sum(map(len, series)) <= _LEGEND_ROW_LETTERS or len(series) > _LEGEND_ROWS
    return 28 if beside else 28 + 16 * (len(series) - 1)


def requests_figure(records: Sequence[RequestRecord], colour: str) -> go.Figure:
    """Every request as a bar from sent to last token, the time to its first token in front; failed ones marked.

    At most ``MOST_REQUESTS`` are drawn, the first ones.
    """
    import plotly.graph_objects as go

    shown = records[:MOST_REQUESTS]
    done = [record for record in shown if record.e2e_ms is not None and record.ttft_ms is not None]
    bad = [record for record in shown if record.status != "ok"]
    figure = go.Figure(
        [
            _bars("until first token", [_waiting(record) for record in done], colour, "/"),
            _bars("streaming tokens", [_streaming(record) for record in done], colour, ""),
            _marks(bad),
        ]
    )
    return figure.update_layout(
        barmode="overlay",
        bargap=0.25,
        height=max(220, min(520, 90 + 16 * len(shown))),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "time since the measurement began (s)", "rangemode": "tozero"},
        yaxis={"title": "request", "range": [len(shown) - 0.4, -0.6], "dtick": max(1, len(shown) // 8)},
    )


def _highest(stretch: Points) -> tuple[float, float | None]:
    measured = [point for point in stretch if point[1] is not None]
    return max(measured, key=lambda point: point[1] or 0.0) if measured else stretch[0]


def _time_axis(span: tuple[float, float]) -> dict[str, Any]:
    ends = {"min": round(span[0] * 1000), "max": round(span[1] * 1000)}
    pattern = "{HH}:{mm}:{ss}" if span[1] - span[0] <= 120 else "{HH}:{mm}"
    return {"type": "time", "splitNumber": 3, "axisLabel": {"hideOverlap": True, "formatter": pattern}} | ends


def _value_labels(unit: str) -> dict[str, Any]:
    return {"axisLabel": {"formatter": f"{{value}} {unit}".strip()}}


def _value_end(top: float | None) -> dict[str, Any]:
    """A fixed end; one that is no round number (a memory size) gets the only label besides 0."""
    if top is None:
        return {}
    return {"max": top} if top % 50 == 0 else {"max": top, "interval": top}


def _printf(unit: str, decimals: int) -> str:
    return f"%.{decimals}f {unit.replace('%', '%%')}".strip()


def _line(name: str, points: Points) -> dict[str, Any]:
    rows = [[round(at_s * 1000), None if value is None else round(value, 4)] for at_s, value in thin(points)]
    return {"name": name, "type": "line", "showSymbol": False, "lineStyle": {"width": 2}, "data": rows}


def _mark_lines(marks: Sequence[Mark]) -> dict[str, Any]:
    data = [
        {"xAxis": round(mark.at_s * 1000), "lineStyle": {"color": mark.colour, "type": "dashed", "width": 1.5}}
        for mark in marks
    ]
    return {"markLine": {"silent": True, "symbol": "none", "label": {"show": False}, "data": data}}


def _band(low: Points, high: Points) -> list[dict[str, Any]]:
    """From lowest to highest: an unseen line with the difference stacked upon it, as ECharts has no band."""
    thinned = zip(thin(low), thin(high), strict=True)
    spread = [
        (at_s, below, None if below is None or above is None else above - below)
        for (at_s, below), (_, above) in thinned
    ]
    unseen = {"lineStyle": {"opacity": 0}, "stack": "band", "tooltip": {"show": False}, "silent": True}
    lowest = _line("lowest", [(at_s, below) for at_s, below, _ in spread]) | unseen
    highest = _line("highest", [(at_s, more) for at_s, _, more in spread]) | unseen
    return [lowest, highest | {"areaStyle": {"opacity": 0.18, "color": PALETTE[0]}}]


def _bars(name: str, rows: Sequence[_Bar], colour: str, pattern: str) -> go.Bar:
    import plotly.graph_objects as go

    return go.Bar(
        name=name,
        orientation="h",
        y=[row.index for row in rows],
        base=[row.start_s for row in rows],
        x=[row.length_s for row in rows],
        marker={"color": colour, "pattern": {"shape": pattern, "size": 5, "solidity": 0.4}},
        hovertemplate="request %{y}: " + name + " %{x:.3f} s<extra></extra>",
    )


def _waiting(record: RequestRecord) -> _Bar:
    return _Bar(record.index, record.sent_ms / 1000, (record.ttft_ms or 0) / 1000)


def _streaming(record: RequestRecord) -> _Bar:
    ttft_ms, e2e_ms = record.ttft_ms or 0.0, record.e2e_ms or 0.0
    return _Bar(record.index, (record.sent_ms + ttft_ms) / 1000, (e2e_ms - ttft_ms) / 1000)


def _marks(records: Sequence[RequestRecord]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        name="failed or cancelled",
        mode="markers",
        x=[record.sent_ms / 1000 for record in records],
        y=[record.index for record in records],
        marker={"symbol": "x", "size": 10, "color": FAILED_COLOUR},
        text=[record.failure.message if record.failure else record.status for record in records],
        hovertemplate="request %{y}: %{text}<extra></extra>",
        showlegend=bool(records),
    )
