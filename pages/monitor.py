"""Monitor: the machine and its workers, live and over the last day."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import streamlit as st

from mcp_core.monitoring.history import Window
from mcp_core.monitoring.nvml import NvmlDevice, nvml_reason
from mcp_core.monitoring.sample import Sample, WorkerSample
from pages._ui import (
    charts,
    frame,
    links,
    memory_panel,
    monitor_compare,
    monitor_events,
    process_tables,
    session,
    telemetry,
    telemetry_csv,
    workbench,
)
from pages._ui import format as fmt

frame.require("monitor")

RANGES_S = {"1 min": 60, "5 min": 300, "15 min": 900, "1 h": 3600, "6 h": 21_600, "24 h": 86_400}
COLUMNS = 3
NEWEST_S = 10.0
_ZOOM_STEP = timedelta(seconds=1)  # Streamlit's own is 15 min

Span = tuple[float, float]


def _draw() -> None:
    st.title("Monitor")
    if workbench.current_worker() is None:
        _draw_no_worker()
    seconds = _draw_controls()
    paused = session.paused_at_s() is not None
    # A row of a coarser ring is new every 10 s or every minute only.
    every_s = 1.0 if seconds <= 900 else 5.0 if seconds <= 3600 else 15.0
    st.fragment(_draw_live, run_every=None if paused else every_s)(seconds)
    with st.expander("Compare two time ranges", icon=":material/compare_arrows:"):
        st.fragment(monitor_compare.draw)()
    worker = workbench.current_worker()
    if worker is not None and worker.state == "ready":
        st.fragment(memory_panel.draw_memory_analysis)(worker)


def _draw_no_worker() -> None:
    with st.container(border=True):
        st.markdown("**No model is loaded** now. The charts show this machine.")
        frame.link("home", "Load a model", icon=":material/play_arrow:")


def _draw_controls() -> int:
    """Time range, pause, download; returns the range in seconds."""
    links.asked("range", RANGES_S.get, "There is no time range {}.", "The last 5 min are shown instead.")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.segmented_control(
            "Time range", list(RANGES_S), default="5 min", required=True, key="range", bind="query-params"
        )
        seconds = RANGES_S[chosen or "5 min"]
        # Not by ``value``: one that follows the answer makes it another widget, and a click on the old one is lost.
        paused = st.toggle("Pause", key="pause", help="Hold the charts still, to zoom into them.")
        _set_paused(paused)
        st.download_button(
            "Download CSV",
            data=lambda: telemetry_csv.csv_text(_window(_ends(seconds), math.inf)),
            file_name=f"mcp-telemetry-{datetime.now().astimezone():%Y%m%d-%H%M%S}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            help="Every series of the time range that is shown, with units in the column names. A row a second for "
            "the last hour; means of 10 s or of a minute for what is older.",
        )
    return seconds


def _set_paused(paused: bool) -> None:
    if not paused:
        session.set_paused_at_s(None)
    elif session.paused_at_s() is None:
        session.set_paused_at_s(time.time())


def _ends(seconds: int) -> Span:
    """The range that ends now, or where it was paused."""
    end_s = session.paused_at_s() or time.time()
    return end_s - seconds, end_s


def _window(span: Span, most_rows: float | None = None) -> Window:
    watch = workbench.get_workbench().watch
    return watch.history(*span) if most_rows is None else watch.history(*span, most_rows=most_rows)


def _draw_live(seconds: int) -> None:
    samples = workbench.get_workbench().telemetry(NEWEST_S)
    if not samples:
        st.info("The first sample comes within a second or two.")
        return
    span = _zoomed(_ends(seconds)) if session.paused_at_s() else _ends(seconds)
    window, newest = _window(span), samples[-1]
    events = [event for event in workbench.get_workbench().watch.events(span[0]) if event.at_s <= span[1]]
    draw = _Drawing(window, span, monitor_events.marks(events))
    st.markdown(_answer(newest))
    if window.workers:
        draw.group("Worker", telemetry.worker_panels(window))
    _draw_devices(draw, newest)
    draw.group("Host", telemetry.host_panels(window, newest.host_memory_total_bytes))
    with st.expander("Memory by process"):
        st.table(process_tables.host_rows(newest), border="horizontal", hide_index=True)
    monitor_events.draw_list(events)


def _zoomed(ends: Span) -> Span:
    """While paused: a part of the range, in the finest rows that there are of it."""
    first, last = (monitor_events.local(at_s) for at_s in ends)
    key = f"zoom-{ends[0]:.0f}-{ends[1]:.0f}"
    begin, end = st.slider("Zoom", first, last, (first, last), _ZOOM_STEP, format="HH:mm:ss", key=key)
    return (begin.timestamp(), end.timestamp()) if begin < end else ends


def _answer(sample: Sample) -> str:
    """What goes on now, in a sentence."""
    machine = (
        f"CPU {sample.host_cpu_percent or 0:.0f} %, memory {fmt.size(sample.host_memory_used_bytes)} of "
        f"{fmt.size(sample.host_memory_total_bytes)}."
    )
    devices = " ".join(
        f"GPU {each.index}: {each.utilization_percent or 0:.0f} % busy, {fmt.size(each.memory_used_bytes)} of "
        f"{fmt.size(each.memory_total_bytes)}."
        for each in sample.devices
    )
    workers = " ".join(map(_worker_words, sample.workers))
    return " ".join(filter(None, (workers, devices, machine)))


def _worker_words(worker: WorkerSample) -> str:
    stats, latency = worker.stats, worker.latency
    title = frame.plain(worker.title)
    if stats is None or not (stats.running or stats.queued):
        return f"**{title} is idle.**"
    p95 = f", TTFT p95 {fmt.ms(latency.ttft_p95_ms)}" if latency and latency.ttft_p95_ms is not None else ""
    queued = f", {stats.queued} queued" if stats.queued else ""
    running = fmt.count(stats.running, "request")
    return f"**{title} answers {running} at {fmt.rate(worker.output_tok_s)}**{queued}{p95}."


class _Drawing:
    """Panels of one window on one time axis."""

    def __init__(self, window: Window, span: Span, marks: Sequence[charts.Mark]) -> None:
        self.window = window
        self._span = span
        self._marks = marks

    def group(self, title: str, panels: Sequence[telemetry.Panel]) -> None:
        """A header and its panels, three beside each other."""
        st.header(title)
        for start in range(0, len(panels), COLUMNS):
            for column, panel in zip(st.columns(COLUMNS), panels[start : start + COLUMNS], strict=False):
                with column.container(border=True):
                    self._panel(title, panel)

    def _panel(self, group: str, panel: telemetry.Panel) -> None:
        st.metric(panel.title, panel.headline, help=panel.meaning)
        spec = charts.live_chart(
            panel.series,
            panel.unit,
            top=panel.top,
            span=self._span,
            decimals=panel.decimals,
            extremes=panel.extremes,
            marks=self._marks,
        )
        st.echarts_chart(spec, height=150, key=f"live-{group}-{panel.title}", alt=panel.alt)
        if panel.note:
            st.caption(panel.note)


def _draw_devices(draw: _Drawing, newest: Sample) -> None:
    """One group for each NVIDIA device; in words why there is none."""
    for device in newest.devices:
        draw.group(f"GPU {device.index}: {device.name}", telemetry.device_panels(draw.window, device))
        _draw_processes(device, newest)
    if not newest.devices:
        reason = nvml_reason() or "it lists none"
        st.caption(f"No NVIDIA device on this machine. NVML, which reads them, says: {frame.plain(reason)}.")


def _draw_processes(device: NvmlDevice, newest: Sample) -> None:
    rows = process_tables.device_rows(newest, device)
    if not rows:
        st.caption(
            "NVML lists no process on this device (a container hides them), so workers have no memory on it."
        )
        return
    with st.expander(f"Memory of GPU {device.index} by process"):
        st.table(rows, border="horizontal", hide_index=True)


_draw()
