"""Figures of what quantization does: memory against KL, loss by group of layers, ranges. Rows in, figure out.

This file does not know where rows come from. Colours and symbols are those of ``charts.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pages._ui.charts import PALETTE, SYMBOLS, colour_of, symbol_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Bubble", "alpha_figure", "effects_figure", "groups_figure", "ranges_figure"]

# Marker diameters, pixels: the area grows with the value.
_SMALLEST_PX, _LARGEST_PX = 12.0, 54.0
# A KL of 0 has no place on a logarithmic axis: it is drawn at a tenth of the smallest one.
_ZERO_SHARE = 0.1
_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}


@dataclass(frozen=True, slots=True)
class Bubble:
    """One measured configuration."""

    label: str
    fingerprint: str
    peak_bytes: int
    kl: float
    output_tok_s: float
    chosen: bool = False


def effects_figure(bubbles: Sequence[Bubble]) -> go.Figure:
    """Memory (x) against KL (y, logarithmic); the bubble's area is tokens per second; the chosen one has a ring."""
    import plotly.graph_objects as go

    fastest = max((bubble.output_tok_s for bubble in bubbles), default=1.0)
    floor = _floor([bubble.kl for bubble in bubbles])
    slowest_last = sorted(bubbles, key=lambda bubble: bubble.output_tok_s, reverse=True)  # small ones on top
    figure = go.Figure([_bubble(bubble, fastest, floor) for bubble in slowest_last])
    return figure.update_layout(
        height=380,
        margin=_MARGIN,
        showlegend=True,  # of a single bubble, too: it says which configuration it is
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        xaxis={"title": "peak memory while serving (MB)", "rangemode": "tozero"},
        yaxis={"title": "mean KL (nats, logarithmic)", "type": "log", "dtick": 1, "exponentformat": "power"},
    )


def groups_figure(names: Sequence[str], losses: Sequence[float], kept: Sequence[bool]) -> go.Figure:
    """The KL of each group in the given order, as bars; kept ones hatched."""
    import plotly.graph_objects as go

    figure = go.Figure(
        [
            _group_bars("quantized", names, losses, [not each for each in kept], PALETTE[0], ""),
            _group_bars("kept dense in the mixed Recipe", names, losses, kept, PALETTE[1], "/"),
        ]
    )
    return figure.update_layout(
        barmode="stack",
        bargap=0.2,
        height=320,
        margin=_MARGIN,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": None, "type": "category", "categoryorder": "array", "categoryarray": list(names)},
        yaxis={"title": "mean KL (nats)", "rangemode": "tozero"},
    )


def ranges_figure(layers: Sequence[tuple[str, float]]) -> go.Figure:
    """(layer name, largest input magnitude) as a line for each kind of module over the decoder layers."""
    import plotly.graph_objects as go

    kinds = list(dict.fromkeys(_kind(name) for name, _ in layers))
    figure = go.Figure([_range_line(kind, position, layers) for position, kind in enumerate(kinds)])
    return figure.update_layout(
        height=340,
        margin=_MARGIN,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "decoder layer"},
        yaxis={"title": "largest input magnitude (logarithmic)", "type": "log", "dtick": 1},
    )


def alpha_figure(tried: Sequence[tuple[float, float]], chosen: float | None) -> go.Figure:
    """KL over alpha; the chosen alpha is marked."""
    import plotly.graph_objects as go

    ordered = sorted(tried)
    marked = [(alpha, kl) for alpha, kl in ordered if alpha == chosen]
    figure = go.Figure([_curve("tried", ordered, "lines+markers", 7), _curve("chosen", marked, "markers", 14)])
    return figure.update_layout(
        height=240,
        margin=_MARGIN,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "alpha"},
        yaxis={"title": "mean KL (nats)", "rangemode": "tozero"},
    )


def _curve(label: str, points: Sequence[tuple[float, float]], mode: str, size: int) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        name=label,
        mode=mode,
        x=[alpha for alpha, _ in points],
        y=[kl for _, kl in points],
        marker={"size": size, "color": PALETTE[1 if label == "chosen" else 0]},
        hovertemplate="alpha %{x}: KL %{y:.3g} nats<extra></extra>",
    )


def _range_line(kind: str, position: int, layers: Sequence[tuple[str, float]]) -> go.Scatter:
    import plotly.graph_objects as go

    own = [(name, largest) for name, largest in layers if _kind(name) == kind]
    return go.Scatter(
        name=kind,
        mode="lines+markers",
        x=[_layer_number(name, index) for index, (name, _) in enumerate(own)],
        y=[largest for _, largest in own],
        marker={"symbol": SYMBOLS[position % len(SYMBOLS)], "color": PALETTE[position % len(PALETTE)]},
        line={"color": PALETTE[position % len(PALETTE)]},
        hovertemplate=f"{kind} of layer %{{x}}: %{{y:.3g}}<extra></extra>",
    )


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _layer_number(name: str, otherwise: int) -> int:
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else otherwise


def _bubble(bubble: Bubble, fastest: float, floor: float) -> go.Scatter:
    import plotly.graph_objects as go

    kl = "0 (lossless)" if bubble.kl <= 0 else f"{bubble.kl:.3g} nats"
    return go.Scatter(
        name=bubble.label,
        mode="markers",
        x=[bubble.peak_bytes / 1e6],
        y=[max(bubble.kl, floor)],
        customdata=[bubble.fingerprint],
        marker={
            "size": max(_SMALLEST_PX, _LARGEST_PX * (bubble.output_tok_s / fastest) ** 0.5),
            "color": colour_of(bubble.fingerprint),
            "symbol": symbol_of(bubble.fingerprint),
            "opacity": 0.8,
            "line": {"width": 4 if bubble.chosen else 1, "color": "#8a94a3"},
        },
        hovertemplate=f"%{{x:,.0f}} MB<br>KL {kl}<br>{bubble.output_tok_s:,.1f} tok/s<extra>{bubble.label}</extra>",
    )


def _floor(losses: Sequence[float]) -> float:
    return min((loss for loss in losses if loss > 0), default=1e-3) * _ZERO_SHARE


def _group_bars(
    label: str, names: Sequence[str], losses: Sequence[float], shown: Sequence[bool], colour: str, pattern: str
) -> go.Bar:
    import plotly.graph_objects as go

    rows = [(name, loss) for name, loss, each in zip(names, losses, shown, strict=True) if each]
    return go.Bar(
        name=label,
        x=[name for name, _ in rows],
        y=[loss for _, loss in rows],
        marker={"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.4}},
        hovertemplate="%{x}: KL %{y:.3g} nats<extra></extra>",
        showlegend=bool(rows),
    )
