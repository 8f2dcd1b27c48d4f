"""Figures about memory: over time by phase, by module, predicted against measured. Rows in, figure out.

This file does not know where rows come from or where a figure is put.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mcp_core.memory_readings import MemoryPoint, MemoryTimeline, ModuleMemory
from mcp_core.models.correction import Error
from pages._ui.charts import PALETTE

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SERIES", "error_figure", "module_figure", "stretches", "timeline_figure"]

# Field of a reading -> its name on the page.
SERIES = {
    "resident_bytes": "process (host)",
    "device_used_bytes": "whole device",
    "reserved_bytes": "reserved by torch",
    "allocated_bytes": "in tensors",
}
_PHASES = (
    "imports",
    "download",
    "prepare",
    "load",
    "quantize",
    "warm-up",
    "check",
    "prefill",
    "decode",
)
_IDLE = "idle"  # most of the time
_MARGIN = {"l": 8, "r": 8, "t": 8, "b": 8}
_GB, _MB = 1e9, 1e6


def timeline_figure(timeline: MemoryTimeline) -> go.Figure:
    """Lines of what was read over the worker's time, phases as coloured stretches behind them, waiting without."""
    import plotly.graph_objects as go

    points = timeline.points
    figure = go.Figure([_line(points, name) for name in SERIES if any(getattr(each, name) for each in points)])
    shaded = [each for each in stretches(points) if each[0] != _IDLE]
    for phase, start_s, end_s in shaded:
        colour = phase_colour(phase)
        figure.add_vrect(x0=start_s, x1=end_s, fillcolor=colour, opacity=0.18, line_width=0, layer="below")
    for phase in dict.fromkeys(phase for phase, _, _ in shaded):
        figure.add_trace(_legend_mark(phase))
    return figure.update_layout(
        height=320,
        margin=_MARGIN,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        xaxis={"title": "time since the worker's start (s)"},
        yaxis={"title": "memory (GB)", "rangemode": "tozero"},
    )


def module_figure(modules: Sequence[ModuleMemory]) -> go.Figure:
    """A treemap: every module's bytes within those that contain it."""
    import plotly.graph_objects as go

    sizes, kinds = _tree(modules)
    names = list(sizes)
    return go.Figure(
        go.Treemap(
            ids=names,
            labels=[name.rpartition(".")[2] for name in names],
            parents=[_container(name) for name in names],
            values=[sizes[name] / _MB for name in names],
            text=[kinds.get(name, "") for name in names],
            branchvalues="total",
            maxdepth=4,
            marker={"colorscale": [[0, "#9db8dc"], [1, PALETTE[0]]], "colors": [sizes[name] for name in names]},
            hovertemplate="%{id}<br>%{value:,.2f} MB %{text}<extra></extra>",
        )
    ).update_layout(height=380, margin=_MARGIN)


def error_figure(errors: Sequence[Error]) -> go.Figure:
    """Predicted against measured peak of Runs; on the line they are equal."""
    import plotly.graph_objects as go

    most = 1.05 * max(max(each.predicted_bytes, each.measured_bytes) for each in errors) / _GB
    runs = go.Scatter(
        name="Runs",
        mode="markers",
        x=[each.measured_bytes / _GB for each in errors],
        y=[each.predicted_bytes / _GB for each in errors],
        text=[f"{each.run_id}: {each.share:+.1%}" for each in errors],
        marker={"size": 10, "color": PALETTE[0]},
        hovertemplate="%{text}<br>measured %{x:.3f} GB<br>predicted %{y:.3f} GB<extra></extra>",
    )
    equal = go.Scatter(
        name="equal", mode="lines", x=[0, most], y=[0, most], line={"color": "#8a7f72", "dash": "dot"}
    )
    return go.Figure([equal, runs]).update_layout(
        height=280,
        margin=_MARGIN,
        showlegend=False,
        xaxis={"title": "measured peak (GB)", "range": [0, most]},
        yaxis={"title": "predicted peak (GB)", "range": [0, most]},
    )


def stretches(points: Sequence[MemoryPoint]) -> list[tuple[str, float, float]]:
    """(phase, from s, to s): neighbouring points of one phase as one."""
    found: list[tuple[str, float, float]] = []
    for point in points:
        start_s = found[-1][2] if found else 0.0
        if found and found[-1][0] == point.phase:
            found[-1] = (point.phase, found[-1][1], point.at_s)
        else:
            found.append((point.phase, start_s, point.at_s))
    return found


def phase_colour(phase: str) -> str:
    """The same colour for a phase everywhere."""
    return PALETTE[_PHASES.index(phase) % len(PALETTE)] if phase in _PHASES else PALETTE[-1]


def _line(points: Sequence[MemoryPoint], name: str) -> go.Scatter:
    import plotly.graph_objects as go

    values = [getattr(point, name) for point in points]
    return go.Scatter(
        name=SERIES[name],
        x=[point.at_s for point in points],
        y=[None if value is None else value / _GB for value in values],
        text=[point.phase for point in points],
        mode="lines",
        line={"width": 2, "color": PALETTE[list(SERIES).index(name)]},
        hovertemplate=f"{SERIES[name]} %{{y:.3f}} GB at %{{x:.1f}} s (%{{text}})<extra></extra>",
    )


def _legend_mark(phase: str) -> go.Scatter:
    import plotly.graph_objects as go

    marker: dict[str, Any] = {"symbol": "square", "size": 12, "color": phase_colour(phase), "opacity": 0.4}
    return go.Scatter(name=phase, x=[None], y=[None], mode="markers", marker=marker)


_WHOLE = "the model"


def _tree(modules: Sequence[ModuleMemory]) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of every module with all that it contains, and what is said of each that holds tensors."""
    sizes: dict[str, int] = {_WHOLE: 0}
    for module in modules:
        name = module.name or _WHOLE
        while name:
            sizes[name] = sizes.get(name, 0) + module.bytes
            name = _container(name)
    return sizes, {module.name: f"{module.kind}, {module.dtype}" for module in modules}


def _container(name: str) -> str:
    """What contains it: the module named before the last dot, then the whole, then nothing."""
    return "" if name == _WHOLE else name.rpartition(".")[0] or _WHOLE
