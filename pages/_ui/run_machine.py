"""What the machine and the worker did during a Run, replayed as the Monitor's charts.

This file does not know how it was recorded (``evaluation/run_recorder.py``).
"""

from __future__ import annotations

import streamlit as st

from mcp_core.errors import McpError
from mcp_core.monitoring.history import Window
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.results import Run
from pages._ui import charts, frame, workbench
from pages._ui import format as fmt
from pages._ui.telemetry import GB, Panel
from pages._ui.telemetry_csv import csv_text

__all__ = ["draw", "mean_words", "run_panels"]

COLUMNS = 3


def draw(run: Run) -> None:
    """A small section; nothing for a Run that was made without a recording."""
    try:
        telemetry = workbench.get_workbench().run_telemetry(run.id)
    except McpError as error:
        frame.show_error(error)
        return
    if telemetry is None or len(telemetry.at_s) < 2:
        return
    st.subheader("Machine during this Run")
    window = telemetry.window()
    span = (window.rows[0].at_s, window.rows[-1].at_s)
    panels = run_panels(telemetry, window)
    for start in range(0, len(panels), COLUMNS):
        for column, panel in zip(st.columns(COLUMNS), panels[start : start + COLUMNS], strict=False):
            with column.container(border=True):
                st.metric(panel.title, mean_words(panel), help=panel.meaning)
                chart = charts.live_chart(
                    panel.series, panel.unit, top=panel.top, span=span, decimals=panel.decimals
                )
                st.echarts_chart(
                    chart, height=130, key=f"run-{run.id}-{panel.title}", alt=f"{panel.title} during the Run."
                )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(_words(telemetry), width="content")
        st.download_button(
            "Download these series",
            data=lambda: csv_text(window),
            file_name=f"run-{run.id}-machine.csv",
            mime="text/csv",
            on_click="ignore",
            icon=":material/download:",
            help="Every series of the Run as CSV, more than are drawn, with units in the column names.",
        )


def run_panels(telemetry: RunTelemetry, window: Window) -> tuple[Panel, ...]:
    """Speed, queue, memory and others' load; of each NVIDIA device memory, power and temperature."""
    panels = [
        _panel(
            "Throughput",
            "tok/s",
            "By the engine's counter, second by second.",
            {"output": window.mean("worker.output_tok_s")},
        ),
        _panel(
            "Requests",
            "",
            "Running in the engine, and waiting for it.",
            {name: window.mean(f"worker.{name}") for name in ("running", "queued")},
            decimals=0,
        ),
        _panel(
            "Worker memory",
            "GB",
            "Resident memory of the worker and the processes that it started.",
            {"resident": _scaled(window, "worker.resident_bytes", 1 / GB)},
            decimals=2,
        ),
        _panel(
            "Others' load",
            "cores",
            "Cores' worth of CPU time that programs besides the server and MCP used: over 0.5 disturbs.",
            {"others": window.mean("host.others_cores")},
            decimals=2,
        ),
    ]
    for scope in telemetry.devices:
        number = scope.removeprefix("gpu")
        panels += [
            _panel(
                f"GPU {number} memory",
                "GB",
                "In use by all processes, and by others than the worker.",
                {
                    "all": _scaled(window, f"{scope}.memory_used_bytes", 1 / GB),
                    "others": _scaled(window, f"{scope}.others_memory_bytes", 1 / GB),
                },
                decimals=2,
            ),
            _panel(
                f"GPU {number} power",
                "W",
                "Draw of the board, and its limit.",
                {
                    "draw": window.mean(f"{scope}.power_w"),
                    "limit": window.mean(f"{scope}.power_limit_w"),
                },
                decimals=0,
            ),
            _panel(
                f"GPU {number} temperature",
                "°C",
                "Of the die.",
                {"die": window.mean(f"{scope}.temperature_c")},
                decimals=0,
            ),
        ]
    return tuple(panel for panel in panels if panel.series)


def mean_words(panel: Panel) -> str:
    """The mean of a panel's first series over the Run."""
    values = [value for _, value in next(iter(panel.series.values())) if value is not None]
    return f"{sum(values) / len(values):,.{panel.decimals}f} {panel.unit}".strip()


def _panel(title: str, unit: str, meaning: str, series: dict[str, charts.Points], decimals: int = 1) -> Panel:
    """Without series that nothing measured."""
    known = {name: points for name, points in series.items() if any(value is not None for _, value in points)}
    return Panel(title, f"{meaning} The figure is the mean over the Run.", unit, known, decimals=decimals)


def _scaled(window: Window, name: str, by: float) -> charts.Points:
    return [(at_s, None if value is None else value * by) for at_s, value in window.mean(name)]


def _words(telemetry: RunTelemetry) -> str:
    """How fine it is, and every reason for lowered clocks."""
    words = [
        f"One point every {fmt.duration(telemetry.interval_s)}, from the first request to the last; warm-up apart."
    ]
    for scope, reasons in telemetry.throttle_reasons.items():
        if reasons:
            words.append(f"GPU {scope.removeprefix('gpu')}'s clocks were held down: {', '.join(reasons)}.")
    return " ".join(words)
