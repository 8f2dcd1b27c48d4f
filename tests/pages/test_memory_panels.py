"""Memory on the Monitor page and in a Run, the planner, and the figures behind them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import McpError
from mcp_core.memory_readings import MemoryPoint, ModuleMemory
from mcp_core.models.correction import Correction, Error
from mcp_core.results import Prediction
from pages._ui import memory_charts

OpenPage = Callable[[str], AppTest]
MB = fakes.MB


def texts(at: AppTest) -> str:
    return "\n".join([each.value for each in (*at.markdown, *at.caption)])


def test_a_ready_worker_s_memory_is_on_the_monitor(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker())
    at = page("monitor").run()
    assert not at.exception
    assert "Where memory goes" in [each.value for each in at.header]
    phases, modules = (table.value for table in at.table)
    assert list(phases["Phase"]) == ["imports", "load", "idle", "prefill", "decode"]
    assert phases["Highest, process (host)"][1] == "1.20 GB"
    assert list(modules["Module"]) == ["model.layers.*.mlp.up_proj", "model.embed_tokens"]
    assert list(modules["Size"]) == ["120 MB", "113 MB"]
    assert "Not here: This model is on the CPU." in texts(at)
    record = next(each for each in at.button if each.label == "Record 5 seconds")
    assert record.disabled


def test_without_a_ready_worker_there_is_no_such_section(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.loading_worker())
    at = page("monitor").run()
    assert not at.exception
    assert "Where memory goes" not in [each.value for each in at.header]


def test_a_worker_that_does_not_answer_says_why(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker())
    wb.errors["memory_analysis"] = McpError("The worker does not answer.", "Load it again.")
    at = page("monitor").run()
    assert not at.exception
    assert any("does not answer" in each.value for each in at.error)


def test_a_snapshot_can_be_downloaded(page: OpenPage, wb: fakes.FakeWorkbench, tmp_path: Path) -> None:
    wb.add(fakes.ready_worker())
    wb.analysis = fakes.memory_analysis(no_snapshot="")
    wb.snapshot = tmp_path / "memory-1.pickle"
    wb.snapshot.write_bytes(b"x" * 2000)
    at = page("monitor").run()
    next(each for each in at.button if each.label == "Record 5 seconds").click()
    at.run()
    assert not at.exception
    assert ("memory_snapshot", "w1", 5.0) in wb.calls
    labels = [each.proto.label for each in at.get("download_button")]
    assert "Download memory-1.pickle (2.00 kB)" in labels


def test_a_run_shows_what_was_predicted_and_its_timeline(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    predicted = Prediction(weights_bytes=538 * MB, peak_bytes=693 * MB, load_peak_bytes=1, context_tokens=96)
    run = fakes.ok_run(predicted=predicted, timeline=fakes.memory_analysis().timeline)
    wb.add(run)
    at = page("runs")
    at.query_params["run"] = run.id
    at.run()
    assert not at.exception
    assert "Predicted peak **693 MB** for a request of 96 tokens, measured **630 MB**: **+10.0%**." in texts(at)
    assert any("Phase" in table.value for table in at.table)


def planner() -> None:
    from mcp_core.presets import bundled
    from pages._ui.planner_panel import draw_planner

    draw_planner(bundled())


def test_the_planner_answers_and_tells_its_errors(wb: fakes.FakeWorkbench, monkeypatch: pytest.MonkeyPatch) -> None:
    wb.correction = Correction(-30 * MB, 4)
    wb.errors_before = (Error("r1", 630 * MB, 600 * MB), Error("r2", 580 * MB, 600 * MB))
    monkeypatch.setattr("pages._ui.workbench.get_workbench", lambda: wb)
    at = AppTest.from_function(planner, default_timeout=30).run()
    assert not at.exception
    first = {metric.label: metric.value for metric in at.metric}
    assert set(first) == {"Longest context", "Users at this context"}
    assert "corrected by -30.0 MB from the newest 4" in texts(at)
    assert "the worst was off by +5.0%" in texts(at)
    at.number_input(key="planner-users").set_value(2)
    at.run()
    assert first["Longest context"] == "131,072 tokens"
    assert 50_000 < int(at.metric[0].value.split()[0].replace(",", "")) < 131_072
    at.toggle(key="planner-corrected").set_value(False)
    at.run()
    assert not at.exception
    assert "Nothing is corrected" in texts(at)


def test_modules_are_a_tree_whose_root_is_the_whole() -> None:
    modules = [
        ModuleMemory(name="model.embed", kind="Embedding", bytes=100),
        ModuleMemory(name="model.layers.0.up", kind="Linear", bytes=30),
        ModuleMemory(name="model.layers.1.up", kind="Linear", bytes=40),
        ModuleMemory(name="head", kind="Linear", bytes=7),
    ]
    (tree,) = memory_charts.module_figure(modules).data
    sizes = dict(zip(tree.ids, tree.values, strict=True))
    parents = dict(zip(tree.ids, tree.parents, strict=True))
    assert {name: round(size * 1e6) for name, size in sizes.items()} == {
        "the model": 177,
        "model": 170,
        "model.embed": 100,
        "model.layers": 70,
        "model.layers.0": 30,
        "model.layers.0.up": 30,
        "model.layers.1": 40,
        "model.layers.1.up": 40,
        "head": 7,
    }
    assert parents["the model"] == ""
    assert (parents["model"], parents["head"], parents["model.layers.1"]) == (
        "the model",
        "the model",
        "model.layers",
    )


def test_phases_lie_behind_the_line_where_they_were() -> None:
    seen = [("load", 1.0), ("load", 3.0), ("idle", 4.0), ("load", 6.0)]
    points = [MemoryPoint(at_s=at_s, phase=phase, resident_bytes=1) for phase, at_s in seen]
    assert memory_charts.stretches(points) == [("load", 0.0, 3.0), ("idle", 3.0, 4.0), ("load", 4.0, 6.0)]
    assert memory_charts.stretches([]) == []


def test_a_device_s_lines_appear_where_there_is_a_device() -> None:
    on_cpu = memory_charts.timeline_figure(fakes.memory_analysis().timeline)
    assert [trace.name for trace in on_cpu.data if trace.mode == "lines"] == ["process (host)"]
    timeline = fakes.memory_analysis().timeline
    points = tuple(each.model_copy(update={"reserved_bytes": 5, "allocated_bytes": 4}) for each in timeline.points)
    on_gpu = memory_charts.timeline_figure(timeline.model_copy(update={"points": points}))
    assert [trace.name for trace in on_gpu.data if trace.mode == "lines"] == [
        "process (host)",
        "reserved by torch",
        "in tensors",
    ]
