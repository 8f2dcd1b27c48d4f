"""A trace's timeline and the parts of two traces' steps as figures: pure functions.

This file does not know where traces come from. A part has the same colour as in the step bar (``why_charts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mcp_core.evaluation.trace_comparison import Difference
from mcp_core.evaluation.trace_timeline import Bar, Timeline
from mcp_core.trace_summary import Part
from pages._ui.charts import PALETTE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PART_NAMES", "PART_WORDS", "parts_figure", "timeline_figure"]

# How each part is called, and what it means.
PART_NAMES: dict[Part, str] = {
    "gemm": "matrix products",
    "kv": "keys and values",
    "attention": "attention",
    "dequantization": "dequantization",
    "sampling": "sampling",
    "elementwise": "norms and elementwise",
    "copy": "copies",
    "communication": "communication",
    "other": "other",
}
PART_WORDS = (
    "Matrix products read the weights. Dequantization turns packed numbers into ones that can be multiplied, "
    "products that do it on the way included. Keys and values: written to their cache and gathered. Copies: to "
    "another device, dtype or layout. By the operator's or kernel's name and what it was called for."
)
_COLOURS = dict(zip(PART_NAMES, PALETTE, strict=False))
_SECTION_COLOUR = "#8a7f72"
_ROW_PX = 26
_LANES = ("waiting requests", "other threads", "engine")


def timeline_figure(timeline: Timeline) -> go.Figure:
    """Every bar in its lane; callers above what they call, a colour a part."""
    import plotly.graph_objects as go

    offsets, ticks, rows = _rows(timeline.bars)
    figure = go.Figure([_trace(name, colour, bars, offsets) for name, colour, bars in _groups(timeline.bars)])
    return figure.update_layout(
        barmode="overlay",
        bargap=0.08,
        height=120 + _ROW_PX * rows,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "time (ms)", "range": [timeline.begin_ms, timeline.end_ms]},
        yaxis={
            "tickvals": list(ticks.values()),
            "ticktext": list(ticks),
            "range": [rows - 0.5, -0.5],
            "fixedrange": True,
        },
        dragmode="zoom",
    )


def parts_figure(labels: tuple[str, str], parts: Sequence[Difference]) -> go.Figure:
    """Two bars a part, ms a step."""
    import plotly.graph_objects as go

    names = [PART_NAMES[each.part] for each in parts]
    values = ([each.before_ms for each in parts], [each.after_ms for each in parts])
    bars = [
        go.Bar(name=label, orientation="h", y=names, x=ms, marker={"color": colour}, hovertemplate="%{x:.3g} ms")
        for label, ms, colour in zip(labels, values, PALETTE, strict=False)
    ]
    return go.Figure(bars).update_layout(
        barmode="group",
        height=120 + 44 * len(names),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "one step (ms)", "rangemode": "tozero"},
        yaxis={"autorange": "reversed"},
    )


def _rows(bars: Sequence[Bar]) -> tuple[dict[str, int], dict[str, int], int]:
    """Where each lane begins, where its name stands, and how many rows there are."""
    depths: dict[str, int] = {}
    for bar in bars:
        depths[bar.lane] = max(depths.get(bar.lane, 0), bar.row + 1)
    lanes = [*(lane for lane in _LANES if lane in depths), *sorted(set(depths) - set(_LANES))]
    offsets, row = {}, 0
    for lane in lanes:
        offsets[lane] = row
        row += depths[lane]
    return offsets, offsets, row


def _groups(bars: Sequence[Bar]) -> list[tuple[str, str, list[Bar]]]:
    sections = [bar for bar in bars if bar.kind in ("section", "waiting")]
    groups = [("sections", _SECTION_COLOUR, sections)] if sections else []
    for part, name in PART_NAMES.items():
        mine = [bar for bar in bars if bar.part == part and bar.kind not in ("section", "waiting")]
        if mine:
            groups.append((name, _COLOURS[part], mine))
    return groups


def _trace(name: str, colour: str, bars: Sequence[Bar], offsets: dict[str, int]) -> go.Bar:
    import plotly.graph_objects as go

    return go.Bar(
        name=name,
        orientation="h",
        base=[bar.begin_ms for bar in bars],
        x=[bar.length_ms for bar in bars],
        y=[offsets[bar.lane] + bar.row for bar in bars],
        customdata=[[bar.name, bar.length_ms] for bar in bars],
        marker={"color": colour, "line": {"width": 0}},
        hovertemplate="%{customdata[0]}<br>%{customdata[1]:.4g} ms, from %{base:.5g} ms<extra></extra>",
    )
