"""Traces whose shares are known, made by hand, and real ones of a tiny model on the CPU."""

from __future__ import annotations

import gzip
import json
import time

import pytest

from mcp_core.errors import InputError
from mcp_core.evaluation import trace_finishing
from mcp_core.evaluation.chrome_trace import read_trace, write_trace
from mcp_core.evaluation.trace_finishing import RAW_STEP
from mcp_core.evaluation.trace_reading import read_summary, summarize
from tests.evaluation.traces import ENGINE, LOOP, MadeTrace


def cpu_trace() -> MadeTrace:
    """A prefill of 100 us and two decode steps of 50 us; tokenization and text in another thread."""
    trace = MadeTrace()
    trace.step(1000, 100, prefill=64, queued_ms=[2.5])
    trace.span("aten::linear", 1010, 60)
    trace.span("aten::mm", 1015, 50)
    trace.step(1100, 5, batch=0)  # nothing was there to compute
    for at in (1200, 1300):
        trace.step(at, 50, batch=3)
        trace.span("bitsandbytes::dequantize_4bit", at + 2, 10, **{"Input Dims": [[4, 8], []]})
        trace.span("aten::mul", at + 4, 6)  # within it
        trace.span("aten::mm", at + 12, 8)
        trace.span("aten::scaled_dot_product_attention", at + 20, 10)
        trace.span("aten::bmm", at + 22, 4)
        trace.span("aten::index_copy_", at + 27, 2)
        trace.section("sampling", at + 32, 12)
        trace.span("aten::softmax", at + 34, 4)
    trace.section("tokenization", 900, 40, tid=LOOP)
    trace.section("detokenization", 1260, 7, tid=LOOP)
    trace.span("aten::mm", 1262, 1, tid=99)  # somebody else's
    return trace


def test_time_on_a_cpu_is_shared_out_to_the_last_microsecond():
    summary = summarize(cpu_trace().document())
    prefill, decode = summary.prefill, summary.decode
    assert (prefill.steps, prefill.tokens, prefill.sequences) == (1, 64, 1)
    assert (decode.steps, decode.tokens, decode.sequences) == (2, 3, 3)
    assert prefill.step_ms == pytest.approx(0.100)
    assert prefill.parts_ms == {"gemm": pytest.approx(0.060)}
    assert prefill.host_gap_ms == pytest.approx(0.040)
    assert prefill.launches == 2
    assert decode.step_ms == pytest.approx(0.050)
    assert decode.device_busy_ms is None
    assert decode.parts_ms == {
        "dequantization": pytest.approx(0.010),
        "gemm": pytest.approx(0.008),
        "attention": pytest.approx(0.008),
        "kv": pytest.approx(0.002),
        "sampling": pytest.approx(0.004),
    }
    assert decode.host_gap_ms == pytest.approx(0.050 - 0.032)
    assert decode.launches == 7
    assert decode.sections_ms == {"decode": pytest.approx(0.038), "sampling": pytest.approx(0.012)}
    assert summary.wall_ms == pytest.approx(0.350)


def test_sections_of_every_thread_and_waits_are_told():
    sections = {each.name: each for each in summarize(cpu_trace().document()).sections}
    assert {name: (each.calls, each.total_ms) for name, each in sections.items()} == {
        "tokenization": (1, pytest.approx(0.040)),
        "detokenization": (1, pytest.approx(0.007)),
        "engine step": (1, pytest.approx(0.005)),
        "prefill": (1, pytest.approx(0.100)),
        "decode": (2, pytest.approx(0.100)),
        "sampling": (2, pytest.approx(0.024)),
        "queued": (1, pytest.approx(2.5)),
    }
    assert sections["decode"].self_ms == pytest.approx(0.076)


def test_the_operator_table():
    rows = {(row.name, row.phase, row.section): row for row in summarize(cpu_trace().document()).operators}
    dequantize = rows["bitsandbytes::dequantize_4bit", "decode", "decode"]
    assert (dequantize.calls, dequantize.cpu_self_ms, dequantize.cpu_total_ms) == (
        2,
        pytest.approx(0.008),
        pytest.approx(0.020),
    )
    assert dequantize.shapes == "[[4, 8]]"
    assert dequantize.device_self_ms is None
    assert rows["aten::softmax", "decode", "sampling"].part == "sampling"
    assert rows["aten::mm", None, ""].calls == 1  # the other thread's is in no step
    assert rows["aten::mm", "prefill", "prefill"].cpu_total_ms == pytest.approx(0.050)


def gpu_trace() -> MadeTrace:
    """One decode step of 100 us on the host whose kernels run until 20 us after its end."""
    trace = MadeTrace()
    trace.step(1000, 100)
    trace.span("aten::linear", 1005, 20)
    trace.span("aten::mm", 1006, 15)
    trace.launch("nvjet_tst_64x8", 1008, 1020, 40)
    trace.span("aten::scaled_dot_product_attention", 1030, 20)
    trace.span("aten::bmm", 1032, 10)
    trace.launch("sm80_xmma_gemm_f32", 1034, 1050, 20)  # overlaps the first by 10
    trace.launch("void kDequantizeBlockwise", 1055, 1080, 10)
    trace.section("sampling", 1060, 35)
    trace.span("aten::item", 1062, 30)
    trace.launch("Memcpy DtoH (Device -> Pageable)", 1064, 1115, 5, "gpu_memcpy")
    trace.span("cudaStreamSynchronize", 1068, 20, "cuda_runtime", correlation=999)
    return trace


def test_kernels_belong_to_the_step_that_launched_them():
    decode = summarize(gpu_trace().document(device="cuda:0")).decode
    assert decode.device_busy_ms == pytest.approx(0.050 + 0.010 + 0.005)
    assert decode.parts_ms == {
        "gemm": pytest.approx(0.040),
        "attention": pytest.approx(0.020),
        "dequantization": pytest.approx(0.010),
        "copy": pytest.approx(0.005),
    }
    assert decode.host_gap_ms == pytest.approx(0.035)
    assert decode.launches == 4
    assert decode.sections_ms == {
        "decode": pytest.approx(0.065),
        "device wait": pytest.approx(0.022),  # the copy's call, and the wait after it
        "sampling": pytest.approx(0.013),
    }


def test_a_section_s_second_event_on_the_device_is_no_step():
    trace = MadeTrace()
    for at, kernel in ((1000, "nvjet_first"), (2000, "nvjet_second")):
        trace.step(at, 100)
        trace.launch(kernel, at + 8, at + 20, 40)
        trace.on_device(RAW_STEP, at + 20, 40)
    decode = summarize(trace.document(device="cuda:0")).decode
    assert decode.steps == 2
    assert decode.step_ms == pytest.approx(0.100)
    assert decode.device_busy_ms == pytest.approx(0.040)


def test_launches_of_a_thread_that_is_no_more_are_the_engine_s():
    """Kineto writes so where the engine's thread has the number that another one had before."""
    trace = MadeTrace()
    trace.step(1000, 100)
    trace.span("aten::mm", 1006, 15)
    trace.launch("nvjet_tst_64x8", 1008, 1020, 40, tid=4)
    trace.span("aten::copy_", 1030, 10, tid=LOOP)
    trace.launch("Memcpy HtoD (Pageable -> Device)", 1032, 1065, 5, "gpu_memcpy", tid=LOOP)
    summary = summarize(trace.document(device="cuda:0"))
    assert summary.decode.parts_ms == {"gemm": pytest.approx(0.040)}
    assert summary.decode.launches == 1
    rows = {(row.name, row.kind): row.phase for row in summary.operators}
    assert rows["nvjet_tst_64x8", "kernel"] == "decode"
    assert rows["Memcpy HtoD (Pageable -> Device)", "kernel"] is None  # another thread's own


def test_an_operator_has_the_time_of_the_kernels_it_launched():
    rows = {(row.name, row.kind): row for row in summarize(gpu_trace().document()).operators}
    assert rows["aten::mm", "operator"].device_self_ms == pytest.approx(0.040)
    assert rows["aten::linear", "operator"].device_self_ms == 0
    assert rows["aten::linear", "operator"].device_total_ms == pytest.approx(0.040)
    kernel = rows["nvjet_tst_64x8", "kernel"]
    assert (kernel.calls, kernel.device_self_ms, kernel.cpu_self_ms, kernel.phase) == (
        1,
        pytest.approx(0.040),
        None,
        "decode",
    )


def test_a_recorded_step_is_one_launch_of_many_kernels():
    trace = MadeTrace()
    trace.step(1000, 100)
    trace.graph(1010, [("nvjet_tst", 1020, 30), ("_attend", 1050, 10), ("triton_poi_fused", 1060, 5)])
    decode = summarize(trace.document()).decode
    assert decode.launches == 1
    assert decode.parts_ms == {
        "gemm": pytest.approx(0.030),
        "attention": pytest.approx(0.010),
        "elementwise": pytest.approx(0.005),
    }
    assert decode.host_gap_ms == pytest.approx(0.055)


def test_memory_is_the_operator_s_that_was_running():
    trace = MadeTrace()
    trace.step(1000, 100)
    trace.span("aten::mm", 1010, 20)
    for at, count in ((1012, 4096), (1015, -1024), (1050, 999)):  # the last one in no operator
        memory = {"ph": "i", "name": "[memory]", "pid": 10, "tid": ENGINE, "ts": at, "args": {"Bytes": count}}
        trace.events.append(memory)
    (row,) = summarize(trace.document()).operators
    assert row.memory_bytes == 3072


def test_a_long_trace_keeps_its_first_whole_steps_and_says_so(monkeypatch):
    monkeypatch.setattr(trace_finishing, "MOST_EVENTS", 20)
    trace = MadeTrace()
    for number in range(10):
        trace.step(1000 * number, 900)
        for place in range(4):
            trace.span("aten::mm", 1000 * number + 100 * place, 50)
    document = trace.document()
    assert document["mcp"]["truncated"] == "It holds the first 4 of 10 steps: 20 events at most."
    summary = summarize(document)
    assert (summary.decode.steps, summary.decode.launches, summary.truncated) == (
        4,
        4,
        document["mcp"]["truncated"],
    )


def test_it_is_written_and_read_back(tmp_path):
    path = tmp_path / "t.json.gz"
    write_trace(path, cpu_trace().document(run_id="run-1", recipe_fingerprint="f", plan={"steps": 3}))
    assert path.read_bytes()[:2] == b"\x1f\x8b"
    summary = read_summary(path)
    assert (summary.trace_id, summary.run_id, summary.recipe_fingerprint) == ("made-by-hand", "run-1", "f")
    assert summary.path == str(path)
    assert summary.decode.steps == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\x1f\x8b\x08\x00broken", "damaged|cannot be read"),
        (gzip.compress(b'{"traceEvents": []}' * 50, mtime=0)[:-20], "damaged|cannot be read"),
        (b"17", "no list of events"),
        (b'{"traceEvents": {}}', "no list of events"),
        (b'{"traceEvents": [1]}', "no list of events"),
        (b'{"traceEvents": []}', "not recorded by MCP"),
        (b'[{"ph": "X", "name": "a", "ts": 1, "dur": 1, "pid": 1, "tid": 1}]', "not recorded by MCP"),
        (b'{"traceEvents": [], "mcp": {"trace_id": "x", "device": "cpu"}}', "no step"),
        (b'{"traceEvents": [], "mcp": 3}', "not recorded by MCP"),
    ],
)
def test_a_broken_or_foreign_file_is_refused_with_the_reason(tmp_path, content, said):
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_summary(path)


@pytest.mark.parametrize("broken", [{"ts": "soon"}, {"dur": None}, {"args": {"sequences": "many"}}, {"pid": []}])
def test_an_event_that_makes_no_sense_is_refused(broken):
    document = cpu_trace().document()
    (step,) = [event for event in document["traceEvents"] if event.get("name") == "prefill"]
    step.update(broken)
    with pytest.raises(InputError, match="not understood"):
        summarize(document)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_trace(tmp_path / "none.json")


def test_steps_that_are_not_in_the_trace_are_refused():
    trace = cpu_trace()
    trace.events = [event for event in trace.events if event["name"] != "engine step"]
    with pytest.raises(InputError, match="does not hold the steps"):
        trace.document()


def test_fifty_thousand_events_are_read_in_about_a_second(tmp_path):
    trace = MadeTrace()
    for number in range(50):
        trace.step(10_000 * number, 9_900)
        for place in range(500):
            at = 10_000 * number + 19 * place
            trace.span("aten::linear", at, 18, **{"Input Dims": [[1, 1, 576], [576, 576], []]})
            trace.span("aten::mm", at + 2, 14, **{"Input Dims": [[1, 576], [576, 576]]})
    path = tmp_path / "t.json.gz"
    write_trace(path, trace.document())
    began_s = time.process_time()
    summary = read_summary(path)
    seconds = time.process_time() - began_s
    assert summary.events == 50_050
    assert seconds < 3  # 0.5 s on a quiet core; this process's own time, so that others do not count
    assert json.dumps(summary.model_dump(mode="json"))
