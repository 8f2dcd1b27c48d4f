"""Profiles of real kernels: `pytest -m gpu`. Shares that are known from how a step is made."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mcp_core import conflicts, hardware
from mcp_core.evaluation.chrome_trace import read_trace
from mcp_core.evaluation.trace_finishing import finished
from mcp_core.evaluation.trace_frames import DEVICE_WAIT
from mcp_core.evaluation.trace_reading import summarize
from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.engine import Engine
from mcp_core.models import catalog, loader
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.trace_summary import TraceSummary
from tests.inference.conftest import Recorder

pytestmark = pytest.mark.gpu

LAYERS = 30
SHAPE = {"layers": LAYERS, "hidden": 512, "intermediate": 1536, "heads": 8, "kv_heads": 4, "vocab": 49152}
MODEL = {"source": "shape", "id": "custom", "shape": SHAPE}


def summary_of(tmp_path: Path, changes: dict[str, object], plan: ProfilePlan) -> TraceSummary:
    """Requests of a small model, one after the other, until so many steps are recorded."""
    recipe = Recipe.from_dict({"model": MODEL, "device": "cuda:0", "dtype": "bf16"}).replace(changes)
    recipe = conflicts.resolve(recipe, hardware.detect())
    model = loader.load(catalog.resolve(recipe.model), recipe, lambda _stage, _part, _text: None, None)
    recorder, traces = Recorder(), []
    engine = Engine(model, recipe, recorder)
    engine.warm_up()
    engine.start()
    recording = threading.Thread(target=lambda: traces.extend(engine.profile(plan, tmp_path, 60.0)))
    try:
        recording.start()
        while engine._recording is None:
            time.sleep(0.001)
        for name in map(str, range(8)):  # 12 steps each
            if recording.is_alive():
                prompt = tuple(range(100 + int(name), 228 + int(name)))
                engine.submit(GenerationRequest(name, prompt, 12, Sampling(temperature=0), 12, ignore_eos=True))
                recorder.wait_end(name)
        recording.join(timeout=60)
    finally:
        engine.close()
    (trace,) = traces
    document = read_trace(Path(trace.path))
    describe(document["traceEvents"])
    return summarize(finished(document, trace.steps, {"trace_id": "t", "device": "cuda:0"}))


def describe(events: list[dict[str, Any]]) -> None:
    """To stdout, which is shown where a test fails: what was recorded, and whether kernels find their launches."""
    print(Counter(event.get("cat") for event in events))
    ids = {
        category: {(event.get("args") or {}).get("correlation") for event in events if event.get("cat") == category}
        for category in ("kernel", "cuda_runtime", "cuda_driver")
    }
    launched = ids["kernel"] & (ids["cuda_runtime"] | ids["cuda_driver"])
    print(f"{len(ids['kernel'])} kernels, {len(launched)} of them with a launch")


def told(summary: TraceSummary) -> str:
    """What a trace holds, for who reads that a test failed."""
    rows = [
        f"{row.kind} {row.name[:70]} {row.part} {row.phase} x{row.calls} {row.device_self_ms or 0:.3f} ms"
        for kind in ("kernel", "operator")
        for row in [row for row in summary.operators if row.kind == kind][:20]
    ]
    phases = (summary.prefill, summary.decode)
    return "\n".join([*(f"{phase.steps} steps, {phase.parts_ms}" for phase in phases if phase), *rows])


PLAN = ProfilePlan(steps=20, warmup=4)


@pytest.mark.parametrize("mode", ["off", "continuous"])
def test_kernels_are_placed_in_their_steps_and_parts(tmp_path, mode):
    summary = summary_of(tmp_path, {"batching.mode": mode, "batching.max_requests": 8}, PLAN)
    for phase in (summary.prefill, summary.decode):
        assert phase is not None
        assert 0 < phase.device_busy_ms <= 1.05 * phase.step_ms
        assert sum(phase.parts_ms.values()) == pytest.approx(phase.device_busy_ms, rel=0.1)  # one stream
        assert phase.parts_ms["gemm"] > 0
        assert phase.parts_ms["attention"] > 0
        assert "dequantization" not in phase.parts_ms
        assert phase.launches > 7 * LAYERS
        # Else a kernel's name is not known.
        assert phase.parts_ms.get("other", 0.0) < 0.1 * phase.device_busy_ms, told(summary)
    assert DEVICE_WAIT in summary.decode.sections_ms
    unplaced = [row for row in summary.operators if row.kind == "kernel" and row.phase is None]
    placed = [row for row in summary.operators if row.kind == "kernel" and row.phase is not None]
    assert sum(row.device_self_ms for row in unplaced) < 0.05 * sum(row.device_self_ms for row in placed)


def test_recorded_steps_are_few_launches_of_the_same_kernels(tmp_path):
    graphs = {"batching.mode": "continuous", "batching.max_requests": 8, "compile": "graphs"}
    recorded = summary_of(tmp_path / "a", graphs, PLAN).decode
    eager = summary_of(tmp_path / "b", graphs | {"compile": "off"}, PLAN).decode
    assert recorded.launches < 0.1 * eager.launches
    assert recorded.parts_ms["gemm"] == pytest.approx(eager.parts_ms["gemm"], rel=0.25)
    assert recorded.parts_ms["attention"] > 0
    assert recorded.step_ms < eager.step_ms


@pytest.mark.parametrize("scheme", ["bnb-nf4", "bnb-int8", "torchao-int8-weight-only", "torchao-int4-weight-only"])
def test_unpacking_shows_in_every_scheme(tmp_path, scheme):
    summary = summary_of(tmp_path, {"quantization.scheme": scheme}, PLAN)
    decode = summary.decode
    assert decode.device_busy_ms, told(summary)
    assert decode.parts_ms.get("dequantization", 0.0) > 0.02 * decode.device_busy_ms, told(summary)
    assert decode.parts_ms.get("other", 0.0) < 0.15 * decode.device_busy_ms, told(summary)


def test_it_can_be_recorded_again_beside_recorded_steps(tmp_path):
    """CUPTI taken down and up beside CUDA graphs crashes the process (pytorch#75504): twice in one process."""
    graphs = {"batching.mode": "continuous", "batching.max_requests": 8, "compile": "graphs"}
    for name in ("first", "second"):
        plan = ProfilePlan(steps=6, warmup=2, repeat=1)
        assert summary_of(tmp_path / name, graphs, plan).decode is not None
