"""Monitor: the machine and its workers, one point a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from mcp_core.monitoring.nvml import nvml_reason
from mcp_core.monitoring.sample import Sample
from pages._ui import charts, frame, memory_panel, session, telemetry, workbench

frame.require("monitor")

RANGES_S = {"1 min": 60, "5 min": 300, "15 min": 900, "60 min": 3600}
COLUMNS = 3


def _draw() -> None:
    st.title("Monitor")
    if workbench.current_worker() is None:
        _draw_no_worker()
    seconds = _draw_controls()
    st.fragment(_draw_charts, run_every=None if session.paused_at_s() else 1.0)(seconds)
    worker = workbench.current_worker()
    if worker is not None and worker.state == "ready":
        st.fragment(memory_panel.draw_memory_analysis)(worker)


def _draw_no_worker() -> None:
    with st.container(border=True):
        st.markdown("**No model is loaded** now. The charts show this machine.")
        frame.link("home", "Load a model", icon=":material/play_arrow:")


def _draw_controls() -> int:
    """Time range, pause, download; returns the range in seconds."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.segmented_control(
            "Time range", list(RANGES_S), default="5 min", required=True, key="range", bind="query-params"
        )
        seconds = RANGES_S[chosen or "5 min"]
        paused = st.toggle("Pause", value=session.paused_at_s() is not None, help="Hold the charts still.")
        _set_paused(paused)
        st.download_button(
            "Download CSV",
            data=lambda: telemetry.csv_text(_window(seconds)),
            file_name=f"mcp-telemetry-{datetime.now().astimezone():%Y%m%d-%H%M%S}.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            help="Every sample of the time range that is shown, one row a second, with units in the column names.",
        )
    return seconds


def _set_paused(paused: bool) -> None:
    if not paused:
        session.set_paused_at_s(None)
    elif session.paused_at_s() is None:
        session.set_paused_at_s(time.time())


def _window(seconds: int) -> tuple[Sample, ...]:
    """The samples of the range that ends now, or where it was paused."""
    paused_at_s = session.paused_at_s()
    if paused_at_s is None:
        return workbench.get_workbench().telemetry(seconds)
    samples = workbench.get_workbench().telemetry(seconds + time.time() - paused_at_s)
    return tuple(sample for sample in samples if sample.at_s <= paused_at_s)


def _draw_charts(seconds: int) -> None:
    samples = _window(seconds)
    if not samples:
        st.info("The first sample comes within a second or two.")
        return
    end_s = session.paused_at_s() or time.time()
    span = (end_s - seconds, end_s)
    if any(sample.workers for sample in samples):
        _draw_group("Worker", telemetry.worker_panels(samples), span)
    _draw_devices(samples, span)
    _draw_group("Host", telemetry.host_panels(samples), span)


def _draw_devices(samples: Sequence[Sample], span: tuple[float, float]) -> None:
    """One group for each NVIDIA device; in words why there is none."""
    for device in samples[-1].devices:
        _draw_group(f"GPU {device.index}: {device.name}", telemetry.device_panels(samples, device.index), span)
        if samples[-1].workers and not device.process_memory_bytes:
            st.caption("NVML lists no process on this device (a container hides them), so workers have no line.")
    if not samples[-1].devices:
        reason = nvml_reason() or "it lists none"
        st.caption(f"No NVIDIA device on this machine. NVML, which reads them, says: {frame.plain(reason)}.")


def _draw_group(title: str, panels: Sequence[telemetry.Panel], span: tuple[float, float]) -> None:
    st.header(title)
    for start in range(0, len(panels), COLUMNS):
        for column, panel in zip(st.columns(COLUMNS), panels[start : start + COLUMNS], strict=False):
            with column.container(border=True):
                _draw_panel(title, panel, span)


def _draw_panel(group: str, panel: telemetry.Panel, span: tuple[float, float]) -> None:
    st.metric(panel.title, panel.headline, help=panel.meaning)
    spec = charts.live_chart(panel.series, panel.unit, top=panel.top, span=span, decimals=panel.decimals)
    st.echarts_chart(spec, height=150, key=f"live-{group}-{panel.title}", alt=panel.alt)


_draw()
