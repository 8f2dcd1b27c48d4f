"""monitor: the charts that there are, what they say in words, events, pause, zoom, range, CSV, comparison."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import time
from collections.abc import Callable
from typing import Any

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.monitoring.events import Event
from mcp_core.monitoring.history import History, Window
from mcp_core.monitoring.nvml import MigInstance
from mcp_core.monitoring.series import Readings, readings_of
from pages._ui import process_tables, range_comparison, telemetry, telemetry_csv

OpenPage = Callable[[str], AppTest]


def _charts(at: AppTest) -> list[Any]:
    return [element.proto for element in at.get("echarts_chart")]


def window_of(samples: Any) -> Window:
    history = History()
    for sample in samples:
        history.add(sample.at_s, readings_of(sample))
    return history.window(samples[0].at_s, samples[-1].at_s)


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
    names = [series["name"] for series in json.loads(_charts(at)[0].spec)["series"]]
    assert names == ["all", "others"]


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
        *("Throughput", "Requests", "TTFT", "TPOT", "KV pages", "Prefix hits", "Worker memory"),
        *("Device memory", "Utilization", "Power", "Temperature", "Clocks"),
        *("CPU", "System memory", "Load average"),
    ]
    assert headlines["TPOT"] == "30.0 ms"
    assert headlines["Prefix hits"] == "40%"
    assert headlines["Temperature"] == "55 °C"
    assert headlines["Clocks"] == "1,980 MHz"
    assert headlines["Device memory"] == "15.29 GB"
    assert headlines["Power"] == "379 W"
    assert all(metric.help for metric in at.metric)
    charts = _charts(at)
    assert len(charts) == 15
    assert all("Now: " in chart.alt for chart in charts)


def test_the_page_begins_with_what_goes_on(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    worker = fakes.ready_worker()
    wb.add(worker).samples = fakes.samples(30, worker=worker, gpu=True)
    answer = page("monitor").run().markdown[0].value
    assert answer.startswith("**SmolLM2")
    assert "answers 1 request at" in answer
    assert "TTFT p95 1" in answer
    assert "GPU 0: " in answer


def test_totals_of_the_range_are_said_below_their_charts(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    worker = fakes.ready_worker()
    wb.add(worker).samples = fakes.samples(30, worker=worker, gpu=True)
    notes = [caption.value for caption in page("monitor").run().caption]
    assert "1,200 prompt tokens saved in this range" in notes
    assert "0 evictions, 90 preemptions, 60 back from the host in this range" in notes
    assert "10.5 kJ in this range" in notes


def test_device_memory_shows_the_device_and_what_others_hold() -> None:
    samples = fakes.samples(5, worker=fakes.ready_worker(), gpu=True)
    (device,) = samples[-1].devices
    panel = telemetry.device_panels(window_of(samples), device)[0]
    assert list(panel.series) == ["all processes", "others"]
    assert [round(points[-1][1] or 0, 2) for points in panel.series.values()] == [15.04, 0.0]
    assert panel.top == 85.0


def test_a_split_device_shows_its_parts() -> None:
    (sample,) = fakes.samples(1, worker=fakes.ready_worker(), gpu=True)
    part = MigInstance(1, "MIG-1", "1g.10gb", 10 * fakes.GB, 6 * fakes.GB, {4242: 5 * fakes.GB})
    device = dataclasses.replace(sample.devices[0], instances=(part,), process_memory_bytes={})
    split = dataclasses.replace(sample, devices=(device,))
    assert telemetry.device_panels(window_of([split]), device)[0].series["MIG 1"][-1][1] == 6.0
    (row,) = process_tables.device_rows(split, device)
    assert (row["part"], row["memory"]) == ("MIG 1", "5.00 GB")


def test_hidden_processes_are_said(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
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


def test_memory_by_process_names_ours_and_sums_up_the_rest() -> None:
    (sample,) = fakes.samples(1, worker=fakes.ready_worker(), gpu=True)
    rows = process_tables.host_rows(sample)
    assert [row["process"] for row in rows] == ["SmolLM2-135M-Instruct", "MCP (this app)", "All other programs"]
    assert rows[-1]["memory"] == "3.90 GB"  # of 5.2 used
    (row,) = process_tables.device_rows(sample, sample.devices[0])
    assert row == {"process": "SmolLM2-135M-Instruct", "id": "4242", "memory": "14.0 GB"}


def test_device_memory_of_what_a_worker_started_goes_by_its_name() -> None:
    (sample,) = fakes.samples(1, worker=fakes.ready_worker(), gpu=True)
    worker = dataclasses.replace(sample.workers[0], pids=frozenset({4242, 4300}))
    device = dataclasses.replace(sample.devices[0], process_memory_bytes={4300: 9, 77: 5})
    rows = process_tables.device_rows(dataclasses.replace(sample, workers=(worker,)), device)
    named = [(row["process"], row["id"]) for row in rows]
    assert named == [("SmolLM2-135M-Instruct", "4300"), ("Another program", "77")]


def test_a_counter_that_a_device_lacks_is_a_dash() -> None:
    (sample,) = fakes.samples(1, gpu=True)
    bare = dataclasses.replace(sample.devices[0], power_w=None)
    panels = telemetry.device_panels(window_of([dataclasses.replace(sample, devices=(bare,))]), bare)
    assert next(panel for panel in panels if panel.title == "Power").headline == "–"


def test_throttling_is_said_as_a_share_of_the_range() -> None:
    samples = fakes.samples(4, gpu=True)
    hot = [
        dataclasses.replace(each, devices=(dataclasses.replace(each.devices[0], throttle_reasons=0x40 * (at < 1)),))
        for at, each in enumerate(samples)
    ]
    panels = telemetry.device_panels(window_of(hot), hot[-1].devices[0])
    assert next(panel for panel in panels if panel.title == "Clocks").note == "Held down: 25% by heat"


def test_requests_running_and_queued_are_summed_over_workers() -> None:
    one, two = fakes.ready_worker(), dataclasses.replace(fakes.ready_worker(), id="w2")
    pairs = zip(fakes.samples(3, worker=one), fakes.samples(3, worker=two), strict=True)
    both = [dataclasses.replace(a, workers=(*a.workers, *b.workers)) for a, b in pairs]
    panels = {panel.title: panel for panel in telemetry.worker_panels(window_of(both))}
    assert [value for _, value in panels["Requests"].series["running"]] == [2.0, 2.0, 2.0]
    assert [value for _, value in panels["Requests"].series["queued"]] == [0.0, 2.0, 4.0]
    assert len(panels["Throughput"].series) == 2


def test_guesses_have_a_chart_only_where_there_are_some() -> None:
    samples = fakes.samples(3, worker=fakes.ready_worker())
    assert "Guesses accepted" not in [panel.title for panel in telemetry.worker_panels(window_of(samples))]
    guessing = [
        dataclasses.replace(
            sample,
            workers=(dataclasses.replace(sample.workers[0], added={"drafted_tokens": 20, "accepted_tokens": 15}),),
        )
        for sample in samples
    ]
    panel = next(each for each in telemetry.worker_panels(window_of(guessing)) if each.title == "Guesses accepted")
    assert panel.headline == "75%"
    assert panel.note == "of 60 guessed tokens in this range"


def test_the_range_comes_from_the_link(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(200)
    at = page("monitor")
    at.query_params["range"] = "1 min"
    at.run()
    assert not at.exception
    axis = json.loads(_charts(at)[0].spec)["xAxis"]
    assert axis["max"] - axis["min"] == 60_000


def test_a_long_range_is_drawn_in_means_with_their_extremes(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(200)
    at = page("monitor")
    at.query_params["range"] = "1 h"
    at.run()
    assert not at.exception
    load = json.loads(_charts(at)[1].spec)["series"]
    assert [series["name"] for series in load] == ["used", "lowest", "highest"]
    assert len(load[0]["data"]) in (20, 21)


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


def test_one_click_ends_a_pause(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    """Also where nothing else was touched since: the switch is the same one in both runs."""
    wb.samples = fakes.samples(30)
    at = page("monitor").run()
    at.toggle[0].set_value(True).run()
    at.toggle[0].set_value(False).run()
    assert not at.slider
    assert not at.toggle[0].value


def test_zoom_draws_a_part_of_a_paused_range(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(200)
    at = page("monitor").run()
    assert not at.slider
    at.toggle[0].set_value(True).run()
    first, last = at.slider[0].value
    assert at.slider[0].step == 1_000_000  # us: Streamlit's own quarter of an hour would be all of this range
    middle = first + (last - first) / 2
    at.slider[0].set_range(middle, last).run()
    assert not at.exception
    axis = json.loads(_charts(at)[0].spec)["xAxis"]
    assert axis["max"] - axis["min"] == pytest.approx(150_000, abs=1000)


def test_events_are_lines_in_the_charts_and_a_list(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.samples = fakes.samples(30)
    now_s = time.time()
    wb.watch.happened = (
        Event(now_s - 4000, "load", "Loading Tiny"),
        Event(now_s - 20, "change", "Tiny: batching.mode off → continuous"),
        Event(now_s - 5, "oom", "Tiny: Memory ran out."),
    )
    at = page("monitor").run()
    assert not at.exception
    for chart in _charts(at):
        lines = json.loads(chart.spec)["series"][0]["markLine"]["data"]
        assert [line["xAxis"] for line in lines] == [round((now_s - 20) * 1000), round((now_s - 5) * 1000)]
    (table,) = [each.value for each in at.markdown if each.value.startswith("| time")]
    newest_first = table.splitlines()[2:]
    assert ["out of memory" in row for row in newest_first] == [True, False]
    assert r"Tiny\: Batching off → continuous" in newest_first[1]


def test_csv_has_a_row_a_sample_and_units_in_its_columns() -> None:
    samples = fakes.samples(3, worker=fakes.ready_worker(), gpu=True)
    rows = list(csv.DictReader(io.StringIO(telemetry_csv.csv_text(window_of(samples)))))
    assert len(rows) == 3
    assert rows[-1]["host_memory_used_bytes"].startswith("52")
    assert rows[-1]["worker_w1_queued"] == "2.0"
    assert rows[-1]["worker_w1_output_tokens"] == "30.0"
    assert rows[-1]["gpu0_power_w"] == "352.0"
    assert rows[-1]["gpu0_memory_clock_mhz"] == ""


def planted(seconds: int, speed: float, began_s: float = 1_700_000_000.0) -> Window:
    """One worker that answers half of the time, at that speed, three of four prompt tokens known."""
    history = History()
    for at in range(seconds):
        busy = at % 2 == 0
        gauges = {
            "w.running": float(busy),
            "w.output_tok_s": speed if busy else 0.0,
            "w.ttft_p95_ms": 500.0 if at < 60 else 100.0,
            "host.cpu_percent": float(at % 100),
        }
        counters = {
            "w.output_tokens": speed if busy else 0.0,
            "w.prompt_tokens": 10.0,
            "w.cached_prompt_tokens": 30.0,
            "gpu0.energy_j": 200.0,
        }
        history.add(began_s + at, Readings(gauges, counters, {"w": "W", "host": "Host", "gpu0": "GPU"}))
    return history.window(began_s, began_s + seconds)


def test_two_ranges_are_compared_by_their_planted_figures() -> None:
    rows = {row.name: row for row in range_comparison.compare(planted(200, 40.0), planted(200, 60.0))}
    speed = rows["Throughput while answering"]
    assert (speed.a_mean, speed.b_mean, speed.ratio) == (40.0, 60.0, 1.5)
    assert rows["Throughput over the whole range"].b_mean == pytest.approx(30.0)
    assert rows["TTFT, p95 of a minute"].a_mean == 100  # the first minute tells of what was before
    assert rows["Prefix hits"].a_mean == 75
    assert rows["CPU"].a_p95 == pytest.approx(94.05, abs=1)
    assert rows["Energy per output token"].a_mean == pytest.approx(10.0)
    assert "KV pages used" not in rows


def test_a_comparison_offers_the_last_live_change_first(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    worker = fakes.ready_worker()
    wb.add(worker).samples = fakes.samples(120, worker=worker)
    now_s = time.time()
    wb.watch.happened = (
        Event(now_s - 60, "change", "Tiny: batching.mode off → continuous"),
        Event(now_s - 5, "job end", "Done: short-chat"),
    )
    at = page("monitor").run()
    assert not at.exception
    around = next(box for box in at.selectbox if box.label == "Compare")
    assert "off → continuous" in around.options[0]
    assert any("(1 min 00 s sampled). B:" in caption.value for caption in at.caption)
    around.select_index(len(around.options) - 1).run()
    assert not at.exception
    assert [each.label for each in at.datetime_input] == ["A from", "A until", "B from", "B until"]
