"""Where a worker's memory goes: by phase over time, by module, the allocator's snapshot; a Run's prediction.

This file does not know how memory is read (``mcp_core/serving``) or how figures are made (``memory_charts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from mcp_core.memory_readings import MemoryAnalysis, MemoryTimeline, ModuleMemory
from mcp_core.models.correction import error_of
from mcp_core.models.planner import without_numbers
from mcp_core.results import Run
from mcp_core.views import WorkerView
from pages._ui import format as fmt
from pages._ui import frame, memory_charts, workbench

__all__ = ["draw_memory_analysis", "draw_run_memory"]

_SNAPSHOT_S = 5.0
_GROUPS_SHOWN = 12


def draw_memory_analysis(worker: WorkerView) -> None:
    """Timeline, phases, modules and snapshot of a ready worker."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.header("Where memory goes")
        st.button("Read again", icon=":material/refresh:", help="The section shows what it was when it was read.")
    with frame.errors_shown():
        analysis = workbench.get_workbench().memory_analysis(worker.id)
        _draw_timeline(analysis.timeline, key=f"timeline-{worker.id}")
        _draw_modules(analysis.modules)
        _draw_snapshot(worker, analysis)


def draw_run_memory(run: Run) -> None:
    """Predicted against measured, and the timeline that was kept with a Run; nothing where there is neither."""
    error = error_of(run)
    if error is not None and run.predicted is not None:
        st.markdown(
            f"Predicted peak **{fmt.size(error.predicted_bytes)}** for a request of "
            f"{fmt.count(run.predicted.context_tokens, 'token')}, measured **{fmt.size(error.measured_bytes)}**: "
            f"**{error.share:+.1%}**.",
            help="(predicted - measured) / measured; the planner's estimate before any correction by earlier Runs.",
        )
    if run.timeline is not None and run.timeline.points:
        _draw_timeline(run.timeline, key=f"timeline-{run.id}")


def _draw_timeline(timeline: MemoryTimeline, key: str) -> None:
    st.plotly_chart(memory_charts.timeline_figure(timeline), key=key)
    rows = [
        {"Phase": phase.name, "Time": fmt.duration(phase.seconds)}
        | {
            f"Highest, {words}": fmt.size(getattr(phase, name))
            for name, words in memory_charts.SERIES.items()
            if any(getattr(each, name) for each in timeline.phases)
        }
        for phase in timeline.phases
    ]
    st.table(rows, border="horizontal", hide_index=True)
    st.caption(
        "Read four times a second, so a shorter peak can be missed; peak memory of a Run counts every byte. "
        "Loading counts from the worker's start; prefill begins at the first look that finds it."
    )


def _draw_modules(modules: Sequence[ModuleMemory]) -> None:
    if not modules:
        return
    st.subheader("Weights by module")
    st.plotly_chart(memory_charts.module_figure(modules), key="memory-modules")
    st.table(_module_rows(modules), border="horizontal", hide_index=True)
    st.caption("Read from the loaded tensors, scales included. A tensor that two modules share counts once.")


def _module_rows(modules: Sequence[ModuleMemory]) -> list[dict[str, str]]:
    """The same module of every layer as one row, largest first."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for module in modules:
        key = without_numbers(module.name), module.kind, module.dtype
        groups.setdefault(key, []).append(module.bytes)
    largest = sorted(groups.items(), key=lambda group: sum(group[1]), reverse=True)
    return [
        {"Module": name, "Class": kind, "Dtype": dtype, "Count": f"{len(sizes):,}", "Size": fmt.size(sum(sizes))}
        for (name, kind, dtype), sizes in largest[:_GROUPS_SHOWN]
    ]


def _draw_snapshot(worker: WorkerView, analysis: MemoryAnalysis) -> None:
    st.subheader("Allocator snapshot")
    st.caption(
        "Every allocation of the next five seconds, for pytorch.org/memory_viz. It is a pickle: MCP writes it and "
        "never opens it; drop it into that page, which reads it in the browser."
    )
    asked = st.button(
        "Record 5 seconds",
        icon=":material/memory:",
        disabled=bool(analysis.no_snapshot),
        help=analysis.no_snapshot or "Send requests meanwhile, or it shows an idle model.",
    )
    if analysis.no_snapshot:
        st.caption(f"Not here: {analysis.no_snapshot}")
    if asked:
        with st.spinner("Recording."):
            _offer(workbench.get_workbench().memory_snapshot(worker.id, _SNAPSHOT_S))


def _offer(path: Path) -> None:
    st.download_button(
        f"Download {path.name} ({fmt.size(path.stat().st_size)})",
        data=path.read_bytes,
        file_name=path.name,
        mime="application/octet-stream",
        on_click="ignore",
        icon=":material/download:",
    )
