"""One kept trace, and two beside each other: figures, timeline, operators, viewers, downloads.

This file does not know how a trace is recorded or read (``mcp_core/evaluation/trace_*.py``).
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from mcp_core.evaluation.trace_comparison import Difference, differences, part_differences
from mcp_core.evaluation.trace_store import KeptTrace, tensorboard_name, timelines
from mcp_core.evaluation.trace_timeline import Timelines
from mcp_core.trace_summary import OperatorRow, Phase, PhaseSummary, TraceSummary
from pages._ui import format as fmt
from pages._ui import frame
from pages._ui.trace_charts import PART_NAMES, PART_WORDS, parts_figure, timeline_figure
from pages._ui.trace_viewers import PERFETTO_MISSING, draw_flame_graph, draw_perfetto, has_perfetto

__all__ = ["draw_comparison", "draw_trace"]

_PHASES: tuple[Phase, ...] = ("decode", "prefill")
_MOST_DIFFERENCES = 40
# Two traces of the same Recipe differ by as much.
_ALIKE = 0.05
_CHANGES = {
    "appeared": "+ appeared",
    "vanished": "− vanished",
    "more": "↑ more",
    "less": "↓ less",
    "same": "= same",
}
_GAP_HELP = "GPU: time of a step in which nothing ran on it. CPU: time outside any operator: Python, scheduling."
_VIEWS: dict[str, Callable[[KeptTrace], None]] = {}


def draw_trace(kept: KeptTrace) -> None:
    """What a step of each phase takes, then the view that is chosen."""
    summary = kept.summary
    st.caption(_about(kept))
    if summary.truncated:
        st.caption(f":material/content_cut: {frame.plain(summary.truncated)}")
    phases = [(name, phase) for name in _PHASES if (phase := summary.phase(name)) is not None]
    for (name, phase), column in zip(phases, st.columns(len(phases)), strict=True):
        with column:
            _draw_phase(name, phase)
    view = st.segmented_control("View", list(_VIEWS), default="Timeline", key="trace-view", required=True)
    with frame.errors_shown():
        _VIEWS[view](kept)
    _downloads(kept)


def draw_comparison(before: KeptTrace, after: KeptTrace) -> None:
    """Two traces: what each part of a step takes in both, and which operators or kernels came or went."""
    shared = [name for name in _PHASES if before.summary.phase(name) and after.summary.phase(name)]
    if not shared:
        st.info("The two traces have no phase in common: one has only prefill, the other only decode steps.")
        return
    phase = st.segmented_control("Phase", shared, default=shared[0], key="compare-phase", required=True)
    one, other = before.summary, after.summary
    st.markdown(f"**{_verdict(one, other, phase)}**")
    labels = (_short(one), _short(other)) if _short(one) != _short(other) else (f"1: {_short(one)}", _short(other))
    st.plotly_chart(
        parts_figure(labels, part_differences(one, other, phase)),
        key="compare-parts",
        alt="What each part of a step takes in both traces.",
    )
    found = differences(one, other, phase)
    st.dataframe(
        [_difference_row(each) for each in found[:_MOST_DIFFERENCES]],
        hide_index=True,
        placeholder=fmt.NOT_MEASURED,
        column_config={
            "Difference": st.column_config.NumberColumn(
                "Difference, ms", format="%+.3f", help="After less before."
            ),
            "Before": st.column_config.NumberColumn("Before, ms", format="%.3f", help=_own_time(labels[0])),
            "After": st.column_config.NumberColumn("After, ms", format="%.3f", help=_own_time(labels[1])),
            "Calls before": st.column_config.NumberColumn(format="%.1f", help="In one step."),
            "Calls after": st.column_config.NumberColumn(format="%.1f", help="In one step."),
        },
        alt="Operators or kernels of both traces, the largest difference first.",
    )
    st.caption(
        f"The {min(len(found), _MOST_DIFFERENCES)} largest differences of {len(found)}. Names are those of "
        "operators on a CPU and of kernels where both ran on a GPU; both times include the profiler's own cost."
    )


def _about(kept: KeptTrace) -> str:
    summary = kept.summary
    parts = [frame.plain(summary.title), frame.plain(summary.device)]
    if summary.created is not None:
        parts.append(f"{summary.created:%Y-%m-%d %H:%M}")
    parts += [fmt.count(summary.events, "event"), fmt.size(kept.bytes)]
    if summary.run_id:
        parts.append(f"explains Run {summary.run_id}")
    return " · ".join(parts)


def _draw_phase(name: Phase, phase: PhaseSummary) -> None:
    with st.container(border=True):
        steps = fmt.count(phase.steps, "step")
        sequences = fmt.count(round(phase.sequences or 1), "request")
        st.markdown(f"**{fmt.sentence(name)}**: {steps} of {sequences}")
        with st.container(horizontal=True):
            st.metric(
                "One step", fmt.ms(phase.step_ms), width=120, help="Wall time, the profiler's own cost included."
            )
            if phase.device_busy_ms is not None:
                st.metric(
                    "GPU busy", fmt.ms(phase.device_busy_ms), width=120, help="At least one kernel or copy ran."
                )
            st.metric("Host gap", fmt.ms(phase.host_gap_ms), width=120, help=_GAP_HELP)
            calls = "Launches" if phase.device_busy_ms is not None else "Operators"
            st.metric(calls, f"{phase.launches:,.0f}", width=120, help="Calls in one step.")
        rows = [
            {"Part": PART_NAMES[part], "ms a step": fmt.number(spent), "Share": f"{spent / phase.step_ms:.0%}"}
            for part, spent in phase.parts_ms.items()
        ]
        st.table(rows, border="horizontal", hide_index=True)
        sections = " · ".join(f"{section} {fmt.ms(spent)}" for section, spent in phase.sections_ms.items())
        st.caption(f"Host, by section: {sections}", help=PART_WORDS)


def _timeline(kept: KeptTrace) -> None:
    drawn = _timelines_of(kept.path)
    choices = {"One decode step": drawn.decode, "One prefill step": drawn.prefill, "All steps": drawn.whole}
    there = [name for name, timeline in choices.items() if timeline is not None]
    chosen = st.segmented_control("What is drawn", there, default=there[0], key="trace-span", required=True)
    timeline = choices[chosen]
    if timeline is None:
        return
    st.plotly_chart(
        timeline_figure(timeline), key=f"timeline-{kept.id}", alt="Operators and kernels as bars over time."
    )
    words = "All events" if len(timeline.bars) == timeline.events else f"The {len(timeline.bars):,} longest events"
    st.caption(f"{words} of {timeline.events:,}. Drag to zoom, double-click to see all again.")


def _operators(kept: KeptTrace) -> None:
    summary = kept.summary
    with st.container(horizontal=True, vertical_alignment="bottom"):
        scopes = [*(name for name in _PHASES if summary.phase(name)), "all"]
        scope = st.segmented_control("Phase", scopes, default=scopes[0], key="operators-phase", required=True)
        sections = sorted({row.section for row in summary.operators if row.section and scope in (row.phase, "all")})
        section = st.selectbox(
            "Section", sections, index=None, placeholder="Any", key="operators-section", width=180
        )
        kinds = sorted({row.kind for row in summary.operators})
        kind = st.segmented_control("Rows", kinds, default=kinds[0], key="operators-kind", required=True)
        wanted = st.text_input("Name contains", key="operators-name", width=200).strip().lower()
    rows = [
        row
        for row in summary.operators
        if scope in (row.phase, "all")
        and row.kind == kind
        and (section is None or row.section == section)
        and wanted in row.name.lower()
    ]
    steps = 1 if scope == "all" else _steps(summary, scope)
    _operator_table(rows, steps, scope)


def _operator_table(rows: Sequence[OperatorRow], steps: int, scope: str) -> None:
    if not rows:
        st.info("No operator is left by these filters.", icon=":material/filter_alt:")
        return
    each = "a step" if scope != "all" else "in all"
    shown = [_operator_row(row, steps) for row in sorted(rows, key=_own_ms, reverse=True)]
    kept = [name for name in shown[0] if any(row[name] not in (None, "") for row in shown)]
    number = functools.partial(st.column_config.NumberColumn, format="%.3f")
    st.dataframe(
        [{name: row[name] for name in kept} for row in shown],
        hide_index=True,
        placeholder=fmt.NOT_MEASURED,
        column_config={
            "Self CPU": number(f"Self CPU, ms {each}", help="On the host, less the operators it called."),
            "CPU": number(f"CPU, ms {each}", help="On the host, from call to return."),
            "Self GPU": number(f"Self GPU, ms {each}", help="Kernels that it launched itself."),
            "GPU": number(f"GPU, ms {each}", help="Kernels launched within it."),
            "Calls": st.column_config.NumberColumn(f"Calls {each}", format="%.1f"),
            "Memory": st.column_config.NumberColumn(
                f"Memory, kB {each}", format="%.1f", help="Allocated less freed within it."
            ),
            "Shapes": st.column_config.TextColumn("Shapes", help="Its most frequent input shapes."),
            "Part": st.column_config.TextColumn("Part", help=PART_WORDS),
        },
        alt="Operators by their own time.",
    )
    st.caption(f"{fmt.count(len(rows), 'row')}; of the whole trace the 300 longest operators and kernels are kept.")


def _operator_row(row: OperatorRow, steps: int) -> dict[str, Any]:
    def a_step(value: float | None) -> float | None:
        return None if value is None else value / steps

    return {
        "Name": row.name,
        "Part": PART_NAMES[row.part],
        "Self CPU": a_step(row.cpu_self_ms),
        "CPU": a_step(row.cpu_total_ms),
        "Self GPU": a_step(row.device_self_ms),
        "GPU": a_step(row.device_total_ms),
        "Calls": row.calls / steps,
        "Memory": a_step(None if row.memory_bytes is None else row.memory_bytes / 1e3),
        "Shapes": row.shapes,
        "Section": row.section,
    }


def _own_ms(row: OperatorRow) -> float:
    return row.device_self_ms or row.cpu_self_ms or 0.0


def _steps(summary: TraceSummary, phase: str) -> int:
    found = summary.decode if phase == "decode" else summary.prefill
    return found.steps if found else 1


def _perfetto(kept: KeptTrace) -> None:
    if has_perfetto():
        draw_perfetto(kept)
    else:
        st.info(
            f"{PERFETTO_MISSING} Or download the trace and open it at ui.perfetto.dev.", icon=":material/extension:"
        )


_VIEWS |= {
    "Timeline": _timeline,
    "Operators": _operators,
    "Flame graph": draw_flame_graph,
    "Perfetto": _perfetto,
}


def _downloads(kept: KeptTrace) -> None:
    with st.container(horizontal=True):
        st.download_button(
            "Trace for Perfetto",
            data=kept.path.read_bytes,
            file_name=f"{kept.id}.json.gz",
            mime="application/gzip",
            on_click="ignore",
            icon=":material/download:",
            help="Chrome format; ui.perfetto.dev and chrome://tracing open it.",
        )
        st.download_button(
            "Folder for TensorBoard",
            data=lambda: _tensorboard_zip(kept),
            file_name=f"{kept.id}-tensorboard.zip",
            mime="application/zip",
            on_click="ignore",
            icon=":material/folder_zip:",
            help="Unpack it and start tensorboard --logdir there, with the plugin torch-tb-profiler.",
        )


def _tensorboard_zip(kept: KeptTrace) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # the trace is compressed already
        archive.write(kept.path, tensorboard_name(kept))
    return packed.getvalue()


@functools.lru_cache(maxsize=8)
def _timelines_of(trace: Path) -> Timelines:
    """A megabyte of JSON: read once for all visitors."""
    return timelines(trace)


def _verdict(one: TraceSummary, other: TraceSummary, phase: Phase) -> str:
    before, after = one.phase(phase), other.phase(phase)
    assert before is not None
    assert after is not None
    ratio, longer_ms = after.step_ms / before.step_ms, after.step_ms - before.step_ms
    times = f"{fmt.ms(after.step_ms)} instead of {fmt.ms(before.step_ms)}"
    if abs(ratio - 1) < _ALIKE:
        return f"A {phase} step takes about as long in both: {times}."
    gap = ("the host's gap", after.host_gap_ms - before.host_gap_ms)
    parts = [gap, *((PART_NAMES[each.part], each.delta_ms) for each in part_differences(one, other, phase))]
    name, delta_ms = max(parts, key=lambda part: part[1] if longer_ms > 0 else -part[1])
    return f"A {phase} step takes {times} ({ratio:.2f} times); most of that is {name}, {delta_ms:+.3g} ms."


def _short(summary: TraceSummary) -> str:
    """The title without the model's name."""
    return summary.title.partition(", ")[2] or summary.title


def _own_time(label: str) -> str:
    return f"Own time in one step of: {label}."


def _difference_row(each: Difference) -> dict[str, Any]:
    return {
        "Name": each.name,
        "Part": PART_NAMES[each.part],
        "Change": _CHANGES[each.change],
        "Difference": each.delta_ms,
        "Before": each.before_ms,
        "After": each.after_ms,
        "Calls before": each.before_calls,
        "Calls after": each.after_calls,
    }
