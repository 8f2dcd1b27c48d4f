"""A real profile of a tiny model on the CPU, read: what is known of it comes out."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from mcp_core import conflicts, hardware
from mcp_core.errors import McpError
from mcp_core.evaluation.chrome_trace import read_trace
from mcp_core.evaluation.trace_finishing import finished
from mcp_core.evaluation.trace_reading import summarize
from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.engine import Engine
from mcp_core.inference.profiling import Recording
from mcp_core.models import catalog, loader
from mcp_core.presets import bundled
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import ModelRef, Quantization, Recipe
from mcp_core.sections import marked_by, profile_section
from mcp_core.trace_summary import PhaseSummary, TraceSummary
from tests.tiny_llama import build_tiny_llama


def summary_of(engine, plan, folder, requests) -> TraceSummary:
    traces = []
    waiting = threading.Thread(target=lambda: traces.extend(engine.profile(plan, folder, 60.0)))
    waiting.start()
    while engine._recording is None:
        time.sleep(0.001)
    for each in requests:
        engine.submit(each)
    waiting.join(timeout=60)
    (trace,) = traces
    document = finished(read_trace(Path(trace.path)), trace.steps, {"trace_id": "t", "device": "cpu"})
    return summarize(document)


@pytest.mark.parametrize("mode", ["off", "static", "continuous"])
def test_every_mode_s_steps_are_told_apart_and_explained(make_engine, request_of, tmp_path, prompt, mode):
    engine = make_engine({"batching.mode": mode, "batching.max_requests": 2, "batching.max_wait_ms": 200})
    requests = [request_of(name, max_tokens=8) for name in "ab"]
    summary = summary_of(engine, ProfilePlan(steps=7, warmup=0, memory=True), tmp_path, requests)
    prefill, decode = summary.prefill, summary.decode
    batch = 1 if mode == "off" else 2
    assert prefill.tokens == (batch if mode == "static" else 1) * len(prompt) or mode == "continuous"
    assert decode.sequences == decode.tokens == batch
    for phase in (prefill, decode):
        # All that is known of a step: operators by part, and the time outside of any.
        assert sum(phase.parts_ms.values()) + phase.host_gap_ms == pytest.approx(phase.step_ms, rel=0.01)
        assert phase.parts_ms["gemm"] > 0
        assert phase.parts_ms["attention"] > 0
        assert phase.device_busy_ms is None
    names = {section.name for section in summary.sections}
    assert {"prefill", "decode", "queue", "queued", "sampling", "delivery"} <= names
    linear = [row for row in summary.operators if row.name == "aten::linear" and row.phase == "decode"]
    assert sum(row.calls for row in linear) == decode.steps * (3 * 7 + 1)  # layers x products, and the output
    assert any(row.memory_bytes for row in summary.operators)
    assert any("320" in row.shapes for row in summary.operators)  # the vocabulary


def test_a_pass_that_is_read_a_step_later_counts_where_it_was_begun(make_engine, request_of, tmp_path, prompt):
    engine = make_engine({"batching.mode": "continuous"})
    engine._mode._ahead = True  # as on a GPU
    summary = summary_of(engine, ProfilePlan(steps=6, warmup=0), tmp_path, [request_of("a", max_tokens=8)])
    assert (summary.prefill.steps, summary.decode.steps) == (1, 5)
    assert (summary.prefill.tokens, summary.decode.tokens) == (len(prompt), 1)
    linear = [row for row in summary.operators if row.name == "aten::linear"]
    assert {row.phase: row.calls for row in linear} == {"prefill": 22, "decode": 5 * 22}
    (row,) = [row for row in linear if row.phase == "prefill"]
    assert f"[1, {len(prompt)}, 64]" in row.shapes


def test_a_profile_that_is_over_does_not_stop_the_next_one(make_engine, tmp_path, monkeypatch):
    engine = make_engine(start=False)
    following = Recording(ProfilePlan(), tmp_path)

    def ended_and_followed(_recording, _timeout_s):
        engine._recording = following
        return True

    monkeypatch.setattr(Recording, "wait", ended_and_followed)
    with pytest.raises(McpError, match="Nothing was recorded"):
        engine.profile(ProfilePlan(), tmp_path)
    assert not following.stop_asked


def test_a_section_costs_next_to_nothing_without_a_profiler():
    began_s = time.process_time()
    for _ in range(100_000):
        with profile_section("sampling"):
            pass
    assert time.process_time() - began_s < 0.5  # 0.15 us each on a quiet core; a step has five


def test_sections_are_marked_while_a_profiler_runs_and_not_after():
    marked = []

    class Marked:
        def __init__(self, name):
            marked.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    with marked_by(Marked), profile_section("sampling"):
        pass
    with profile_section("queue"):
        pass
    assert marked == ["sampling"]


def decode_of(recipe, tmp_path) -> PhaseSummary:
    """A decode step of that Recipe, recorded."""
    recipe = conflicts.resolve(recipe.replace({"device": "cpu", "threads": 1}), hardware.detect())
    model = loader.load(catalog.resolve(recipe.model), recipe, lambda _stage, _part, _text: None, None)
    engine = Engine(model, recipe, lambda _events: None)
    engine.start()
    try:
        prompt = tuple(range(100, 120))
        request = GenerationRequest("a", prompt, 8, Sampling(temperature=0), 8, ignore_eos=True)
        summary = summary_of(engine, ProfilePlan(steps=7, warmup=1), tmp_path, [request])
    finally:
        engine.close()
    assert summary.decode is not None
    return summary.decode


@pytest.mark.parametrize(
    ("scheme", "unpacks"), [("none", False), ("bnb-nf4", True), ("torchao-int8-weight-only", True)]
)
def test_unpacking_shows_where_weights_are_packed(tmp_path, scheme, unpacks):
    ref = ModelRef(source="folder", id=str(build_tiny_llama(tmp_path / "model")))
    recipe = Recipe(model=ref, dtype="bf16", quantization=Quantization(scheme=scheme))
    decode = decode_of(recipe, tmp_path)
    assert ("dequantization" in decode.parts_ms) is unpacks
    assert decode.parts_ms["gemm"] > 0


@pytest.mark.slow
def test_unpacking_and_multiplying_are_told_apart_in_real_schemes(tmp_path):
    """The bundled model in bf16 on one core: int8 unpacks, then multiplies as before; NF4's kernel does both."""
    dense, int8, nf4 = (
        decode_of(bundled().replace({"dtype": "bf16", "quantization.scheme": scheme}), tmp_path)
        for scheme in ("none", "torchao-int8-weight-only", "bnb-nf4")
    )
    assert "dequantization" not in dense.parts_ms
    assert int8.parts_ms["dequantization"] > 0.15 * int8.step_ms
    assert int8.parts_ms["gemm"] == pytest.approx(dense.parts_ms["gemm"], rel=0.5)
    assert nf4.parts_ms["dequantization"] > 0.15 * nf4.step_ms
    assert nf4.parts_ms["gemm"] < 0.5 * dense.parts_ms["gemm"]  # only the output layer is left dense
