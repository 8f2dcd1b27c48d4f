"""Figures of the Why page: the roofline, a decode step as a bar. Rows in, figure out.

This file does not know where rows come from. Colours and symbols of a Recipe are those of ``charts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp_core.evaluation.roofline import Point, Roofline
from mcp_core.evaluation.step_bar import PARTS, UNEXPLAINED, StepBar
from pages._ui.charts import PALETTE, colour_of, symbol_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Placed", "roofline_figure", "steps_figure"]

_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}
# Left to itself plotly cuts a horizontal legend at half the figure, and on a phone the last parts are gone.
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "maxheight": 1.0}
# Of a decode step's figure: the axis with its title, a bar, a row of the legend (on a phone each name has its own).
_AXIS_PX, _BAR_PX, _NAME_PX = 75, 55, 20
_ROOF_COLOUR = "#8a7f72"
_GAP_COLOUR = "#8a7f72"
_UNEXPLAINED_COLOUR = "#b9b2a8"


@dataclass(frozen=True, slots=True)
class Placed:
    """One Run in a figure."""

    label: str
    fingerprint: str
    roofline: Roofline


def roofline_figure(runs: Sequence[Placed]) -> go.Figure:
    """FLOP/s over FLOPs a byte, logarithmic: each Run's prefill (filled) and decode (open) under its ceilings."""
    import plotly.graph_objects as go

    figure = go.Figure([trace for placed in runs for trace in _points(placed)])
    low, high = _span(runs)
    roofs = [roof for placed in runs if (roof := _roof(placed.roofline, low, high))]
    for roof in {each.name: each for each in roofs}.values():  # one line for Runs of one device and dtype
        figure.add_trace(roof)
    return figure.update_layout(
        height=400,
        margin=_MARGIN,
        legend=_LEGEND,
        xaxis={"title": "FLOPs for each byte read", "type": "log", "range": [low, high], "dtick": 1},
        yaxis={"title": "FLOP/s", "type": "log", "tickformat": ".0s", "dtick": 1},
    )


def steps_figure(bars: Sequence[tuple[str, StepBar]]) -> go.Figure:
    """One stacked bar a Run, the first on top; hatched where it is a floor and no trace."""
    import plotly.graph_objects as go

    names = list(dict.fromkeys(name for _, bar in bars for name, took in bar.parts if took > 0))
    figure = go.Figure([_part(name, bars) for name in names])
    return figure.update_layout(
        barmode="stack",
        bargap=0.35,
        height=_AXIS_PX + _BAR_PX * len(bars) + _NAME_PX * len(names),
        margin=_MARGIN,
        legend=_LEGEND | {"traceorder": "normal"},
        xaxis={"title": "one decode step (ms)", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "title": None},
    )


def _points(placed: Placed) -> list[go.Scatter]:
    import plotly.graph_objects as go

    shown, roofline = [], placed.roofline
    for name, point, filled in (("prefill", roofline.prefill, True), ("decode", roofline.decode, False)):
        if point.achieved_flop_s is None:
            continue
        symbol = symbol_of(placed.fingerprint) + ("" if filled else "-open")
        shown.append(
            go.Scatter(
                name=f"{placed.label}: {name}",
                mode="markers",
                x=[point.work.intensity],
                y=[point.achieved_flop_s],
                marker={"size": 14, "color": colour_of(placed.fingerprint), "symbol": symbol, "line": {"width": 2}},
                hovertemplate=f"{name}: %{{x:.3s}} FLOPs a byte, %{{y:.3s}}FLOP/s{_shares(point)}<extra></extra>",
            )
        )
    return shown


def _shares(point: Point) -> str:
    found = (("MBU", point.mbu), ("MFU", point.mfu))
    return "".join(f"<br>{name} {value:.1%}" for name, value in found if value is not None)


def _roof(roofline: Roofline, low: float, high: float) -> go.Scatter | None:
    """The two ceilings of one kind of product as one line; only the slope where no FLOP rate is known."""
    import plotly.graph_objects as go

    bandwidth, flop_s = roofline.decode.bandwidth_bytes_s, roofline.decode.flop_s
    if bandwidth is None:
        return None
    ends = [10**low, 10**high]
    if flop_s is not None:
        ends.insert(1, flop_s / bandwidth)
    heights = [min(each * bandwidth, flop_s or float("inf")) for each in ends]
    rate = f", {flop_s / 1e12:,.3g} TFLOP/s {roofline.product}" if flop_s else ""
    title = f"{bandwidth / 1e9:,.0f} GB/s{rate}"
    return go.Scatter(
        name=f"at most {title}",
        mode="lines",
        x=ends,
        y=heights,
        line={"color": _ROOF_COLOUR, "width": 2, "dash": "solid" if roofline.product != "int8" else "dash"},
        hovertemplate=f"at most {title}<extra></extra>",
    )


def _span(runs: Sequence[Placed]) -> tuple[float, float]:
    """Powers of ten around every point and every ridge."""
    import math

    places = [each.work.intensity for run in runs for each in (run.roofline.prefill, run.roofline.decode)]
    places += [
        run.roofline.decode.flop_s / run.roofline.decode.bandwidth_bytes_s
        for run in runs
        if run.roofline.decode.flop_s and run.roofline.decode.bandwidth_bytes_s
    ]
    logs = [math.log10(each) for each in places if each > 0] or [0.0]
    return math.floor(min(logs) - 0.3), math.ceil(max(logs) + 0.3)


def _part(name: str, bars: Sequence[tuple[str, StepBar]]) -> go.Bar:
    import plotly.graph_objects as go

    return go.Bar(
        name=name,
        orientation="h",
        y=[label for label, _ in bars],
        x=[dict(bar.parts).get(name, 0.0) for _, bar in bars],
        marker={
            "color": _colour_of_part(name),
            "pattern": {"shape": ["" if bar.measured else "/" for _, bar in bars], "size": 5, "solidity": 0.3},
        },
        hovertemplate=name + ": %{x:.3g} ms<extra></extra>",
    )


def _colour_of_part(name: str) -> str:
    if name == UNEXPLAINED:
        return _UNEXPLAINED_COLOUR
    return PALETTE[list(PARTS).index(name)] if name in PARTS else _GAP_COLOUR
