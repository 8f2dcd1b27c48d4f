"""Figures that compare configurations: Pareto frontier, goodput over load, which is fastest at which load.

This file does not know where points come from. Rows in, figure out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mcp_core.decision.overview import OverviewPoint, pareto
from pages._ui import format as fmt
from pages._ui.charts import PALETTE, SYMBOLS

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["crossover_figure", "frontier_figure", "goodput_figure"]

_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}
_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
_SMALLEST_PX, _LARGEST_PX = 9.0, 40.0
_UNKNOWN = "#8a7f72"
# Readable on the light and the dark background at both ends.
_FIDELITY_SCALE = ((0.0, "#1f9d6b"), (0.5, "#b58105"), (1.0, "#d9485f"))
_MOST_ROWS = 24
# So that a ring and its name stay in the picture.
_ROOM_ABOVE = 1.2
# More names on the frontier would lie on each other; hovering tells them.
_MOST_NAMED = 4
_ROW_PX, _LINE_PX = 36, 17


def frontier_figure(points: Sequence[OverviewPoint]) -> go.Figure:
    """Tokens/s per user (x) and per device, a GPU or the machine (y).

    Colour is KL, grey where unknown; the area is KV tokens that fit.
    """
    import plotly.graph_objects as go

    drawn = [point for point in points if point.per_user is not None]
    most = max((point.facts.kv_tokens or 0 for point in drawn), default=0)
    most_s = max((point.per_device for point in drawn), default=1.0)
    known = [point for point in drawn if point.kl is not None]
    unknown = [point for point in drawn if point.kl is None]
    figure = go.Figure([_frontier_line(pareto(drawn))])
    if unknown:
        figure.add_trace(_bubbles("fidelity not measured", unknown, most, {"color": _UNKNOWN}))
    if known:
        scale = {
            "color": [point.kl for point in known],
            "colorscale": _FIDELITY_SCALE,
            "cmin": 0,
            "showscale": True,
            "colorbar": {"title": "KL (nats)", "thickness": 12, "len": 0.8},
        }
        figure.add_trace(_bubbles("fidelity measured", known, most, scale))
    return figure.update_layout(
        height=420,
        margin=_MARGIN,
        legend=_LEGEND | {"itemsizing": "constant"},
        xaxis={"title": "output tok/s for each user", "rangemode": "tozero"},
        yaxis={"title": "output tok/s for each device", "range": [0, _ROOM_ABOVE * most_s]},
    )


def goodput_figure(curves: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> go.Figure:
    """Requests/s that meet the limits over the load, a line a configuration; only measured loads are points."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, (name, curve) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        figure.add_trace(
            go.Scatter(
                name=name,
                mode="lines+markers",
                x=[load for load, _ in curve],
                y=[rate for _, rate in curve],
                line={"color": colour, "width": 2},
                marker={"color": colour, "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9},
                hovertemplate=f"%{{x:g}} {unit}: %{{y:.3g}} good requests/s<extra>{name}</extra>",
            )
        )
    return figure.update_layout(
        height=420,
        margin=_MARGIN,
        showlegend=True,
        legend=_LEGEND,
        xaxis={"title": unit, "rangemode": "tozero"},
        yaxis={"title": "requests/s that meet every limit", "rangemode": "tozero"},
    )


def crossover_figure(points: Sequence[OverviewPoint], unit: str) -> go.Figure:
    """Rows are configurations, columns loads; the colour is the share of the fastest one's tokens/s there."""
    import plotly.graph_objects as go

    loads = sorted({point.load for point in points})
    best = {load: max(point.per_device for point in points if point.load == load) for load in loads}
    rows = _rows(points)
    values = {(point.facts.name, point.load): point.per_device for point in points}
    shares = [[_share(values.get((name, load)), best[load]) for load in loads] for name in rows]
    texts = [[_text(values.get((name, load))) for load in loads] for name in rows]
    figure = go.Figure(
        go.Heatmap(
            x=[f"{load:g}" for load in loads],
            y=[name.replace(" · ", "<br>") for name in rows],  # narrow, so that a phone has room for the loads
            z=shares,
            text=texts,
            texttemplate="%{text}",
            textfont={"color": "#ffffff"},
            colorscale=((0.0, "#5b4a8a"), (0.6, "#2f6f9f"), (1.0, "#16794f")),
            zmin=0,
            zmax=1,
            xgap=2,
            ygap=2,
            showscale=False,
            hovertemplate="%{y} at %{x}: %{text} tok/s, %{z:.0%} of the fastest<extra></extra>",
        )
    )
    lines = max(name.count(" · ") + 1 for name in rows)
    return figure.update_layout(
        height=110 + len(rows) * max(_ROW_PX, _LINE_PX * lines),
        margin=_MARGIN,
        xaxis={"title": unit, "type": "category"},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
    )


def _frontier_line(front: Sequence[OverviewPoint]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        name="frontier",
        mode="lines+markers+text",
        x=[point.per_user for point in front],
        y=[point.per_device for point in front],
        line={"color": PALETTE[0], "width": 2, "dash": "dot"},
        # A ring, so that a single one that beats all others is seen too.
        marker={"color": PALETTE[0], "symbol": "circle-open", "size": _LARGEST_PX + 4, "line": {"width": 2}},
        text=[point.facts.name if len(front) <= _MOST_NAMED else "" for point in front],
        textposition=_inwards([point.per_user or 0.0 for point in front]),
        hoverinfo="skip",
    )


def _inwards(xs: Sequence[float]) -> list[str]:
    """Where a name goes so that the picture's edge does not cut it: of what is on the left, to the right."""
    middle = max(xs, default=0.0) / 2
    return ["top right" if x < middle else "top left" for x in xs]


def _bubbles(name: str, points: Sequence[OverviewPoint], most: int, colours: Mapping[str, object]) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        name=name,
        mode="markers",
        x=[point.per_user for point in points],
        y=[point.per_device for point in points],
        text=[_hover(point) for point in points],
        marker={
            "size": [_size(point.facts.kv_tokens, most) for point in points],
            "opacity": 0.85,
            "line": {"width": 1, "color": "#8a94a3"},
            **colours,
        },
        hovertemplate="%{text}<br>%{x:,.1f} tok/s a user<br>%{y:,.1f} tok/s a GPU<extra></extra>",
    )


def _hover(point: OverviewPoint) -> str:
    kl = "not measured" if point.kl is None else f"{point.kl:.3g} nats"
    tokens = "unknown" if point.facts.kv_tokens is None else f"{point.facts.kv_tokens:,}"
    return f"{point.facts.name} at {point.load:g}<br>KL {kl}<br>KV tokens that fit {tokens}"


def _size(tokens: int | None, most: int) -> float:
    return max(_SMALLEST_PX, _LARGEST_PX * (tokens / most) ** 0.5) if tokens and most else _SMALLEST_PX


def _rows(points: Sequence[OverviewPoint]) -> list[str]:
    """The fastest anywhere first, at most so many."""
    best: dict[str, float] = {}
    for point in points:
        best[point.facts.name] = max(best.get(point.facts.name, 0.0), point.per_device)
    return sorted(best, key=lambda name: -best[name])[:_MOST_ROWS]


def _share(value: float | None, best: float) -> float | None:
    return None if value is None or not best else value / best


def _text(value: float | None) -> str:
    return "" if value is None else fmt.number(value)
