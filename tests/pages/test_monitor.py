"""monitor: the charts that there are, what they say in words, pause, range and CSV."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from typing import Any

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from pages._ui import telemetry

OpenPage = Callable[[str], AppTest]


def _charts(at: AppTest) -> list[Any]:
    return [element.proto for element in at.get("echarts_chart")]


def _headlines(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def test_before_the_first_sample_the_page_says_so(page: OpenPage) -> None:
    at = page("monitor").run()
    assert not at.exception
    assert "No model is loaded" in at.markdown[0].value
    assert "first sample" in at.info[0].value


def test_without_a_worker_the_host_is_shown_and_nvidia_is_explained(
    page: OpenPage, wb: fakes.FakeWorkbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_core.monitoring.nvml.nvml_reason", lambda: "NVML Shared Library Not Found")
    wb.samples = fakes.samples(30)
    at = page("monitor").run()
    assert not at.exception
    assert [header.value for header in at.header] == ["Host"]
    assert list(_headlines(at)) == ["CPU", "System memory", "Load average"]
    assert any(each.value.startswith("No NVIDIA device") for each in at.caption)
    assert any(each.value.endswith("says: NVML Shared Library Not Found.") for each in at.caption)
    assert [series["name"] for series in json.loads(_charts(at)[0].spec)["series"]] == ["all programs"]


def test_every_counter_of_worker_device_and_host_has_a_chart(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    worker = fakes.ready_worker()
    wb.add(worker).samples = fakes.samples(30, worker=worker, gpu=True)
    at = page("monitor").run()
    assert not at.exception
    assert [header.value for header in at.header] == [
        "Worker",
        "GPU 0: NVIDIA H100 80GB HBM3",
        "Host",
        "Where memory goes",
    ]
    headlines = _headlines(at)
    assert list(headlines) == [
        "Output speed",
        "Requests",
        "Worker memory",
        "Device memory",
        "Utilization",
        "Power",
        "Temperature",
        "Clocks",
        "CPU",
        "System memory",
        "Load average",
    ]
    assert headlines["Temperature"] == "55 °C"
    assert headlines["Clocks"] == "1,980 MHz"
    assert headlines["Device memory"] == "15.29 GB"
    assert headlines["Power"] == "379 W"
    assert all(metric.help for metric in at.metric)
    charts = _charts(at)
    assert len(charts) == 11
    assert all("Now: " in chart.alt for chart in charts)


def test_device_memory_shows_the_device_and_the_worker(wb: fakes.FakeWorkbench) -> None:
    samples = fakes.samples(5, worker=fakes.ready_worker(), gpu=True)
    panel = telemetry.device_panels(samples, 0)[0]
    assert [round(points[-1][1] or 0, 2) for points in panel.series.values()] == [15.04, 14.0]
    assert list(panel.series) == ["all processes", "workers"]
    assert panel.top == 85.0


def test_hidden_processes_are_said(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    import dataclasses

    worker = fakes.ready_worker()
    hidden = [
        dataclasses.replace(
            sample, devices=tuple(dataclasses.replace(each, process_memory_bytes={}) for each in sample.devices)
        )
        for sample in fakes.samples(5, worker=worker, gpu=True)
    ]
    wb.add(worker).samples = tuple(hidden)
    at = page("monitor").run()
    assert any("a container hides them" in caption.value for caption in at.caption)


def test_a_counter_that_a_device_lacks_is_a_dash() -> None:
    import dataclasses

    (sample,) = fakes.samples(1, gpu=True)
    bare = dataclasses.replace(sample.devices[0], power_w=None)
    panels = telemetry.device_panels([dataclasses.replace(sample, devices=(bare,))], 0)
    assert next(panel for panel in panels if panel.title == "Power").headline == "–"


def test_requests_running_and_queued_are_summed_over_workers() -> None:
    worker = fakes.ready_worker()
    samples = fakes.samples(3, worker=worker)
    panel = next(panel for panel in telemetry.worker_panels(samples) if panel.title == "Requests")
    assert [value for _, value in panel.series["running"]] == [1.0, 1.0, 1.0]
    assert [value for _, value in panel.series["queued"]] == [0.0, 1.0, 2.0]


def test_the_range_comes_from_the_link(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(200)
    at = page("monitor")
    at.query_params["range"] = "1 min"
    at.run()
    assert not at.exception
    axis = json.loads(_charts(at)[0].spec)["xAxis"]
    assert axis["max"] - axis["min"] == 60_000


def test_pause_holds_the_window_still(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(30)
    at = page("monitor").run()
    at.toggle[0].set_value(True).run()
    held = json.loads(_charts(at)[0].spec)
    time.sleep(0.05)
    wb.samples = (*wb.samples, *fakes.samples(1))
    at.run()
    assert json.loads(_charts(at)[0].spec) == held
    at.toggle[0].set_value(False).run()
    assert json.loads(_charts(at)[0].spec) != held


def test_csv_has_a_row_a_sample_and_units_in_its_columns() -> None:
    samples = fakes.samples(3, worker=fakes.ready_worker(), gpu=True)
    rows = list(csv.DictReader(io.StringIO(telemetry.csv_text(samples))))
    assert len(rows) == 3
    assert rows[-1]["host_memory_total_bytes"] == str(16 * fakes.GB)
    assert rows[-1]["worker_w1_queued"] == "2"
    assert rows[-1]["worker_w1_gpu0_bytes"] == str(14 * fakes.GB)
    assert rows[-1]["gpu0_power_w"] == "352.0"
    assert rows[-1]["gpu0_memory_clock_mhz"] == ""
