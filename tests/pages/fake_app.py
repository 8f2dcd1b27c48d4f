"""The whole app over a FakeWorkbench, for looking at it: streamlit run tests/pages/fake_app.py -- STATE.

STATE is one of: empty, loading, ready, failed, gpu, quantized (several schemes measured, layers studied).
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "pages"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import fake_workbench as fakes  # noqa: E402 - after the path is set

from mcp_core.monitoring.events import Event  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402
from pages._ui import workbench  # noqa: E402


class Moving(fakes.FakeWorkbench):
    """Its samples end now, at every call."""

    gpu = False

    def telemetry(self, seconds: float):
        worker = next((view for view in self.workers() if view.state == "ready"), None)
        return fakes.samples(round(min(seconds, 240)), worker=worker, gpu=self.gpu)


def build(state: str) -> fakes.FakeWorkbench:
    wb = Moving()
    if state == "empty":
        return wb
    nf4 = bundled().replace({"quantization.scheme": "bnb-nf4"})
    wb.add(
        fakes.ok_run(),
        fakes.failed_run(),
        fakes.ok_run("20261119-100000-cccccccc", nf4, created=fakes.CREATED.replace(day=19)),
    )
    wb.request_records = {run.id: fakes.records() for run in wb.run_values}
    wb.gpu = state == "gpu"
    now_s = time.time()
    wb.watch.happened = (
        Event(now_s - 200, "load", "Loading SmolLM2-135M-Instruct", "w1"),
        Event(now_s - 180, "ready", "SmolLM2-135M-Instruct is ready after 20 s", "w1"),
        Event(now_s - 60, "change", "SmolLM2-135M-Instruct: batching.mode off → continuous", "w1"),
        Event(now_s - 20, "oom", "Llama-2-13B: Memory ran out while loading.", "w2"),
    )
    wb.telemetry_of = {run.id: fakes.run_telemetry(gpu=wb.gpu) for run in wb.run_values}
    wb.machine = fakes.hardware(gpu=wb.gpu)
    view = {"loading": fakes.loading_worker, "failed": fakes.failed_worker}.get(state, fakes.ready_worker)()
    wb.add(view)
    if state == "quantized":
        study(wb)
    if state == "ready":
        wb.add(fakes.running_job(), fakes.conversation())
        wb.engine_stats["w1"] = fakes.EngineStats(running=1, queued=2, max_requests=64)
    return wb


def study(wb: fakes.FakeWorkbench) -> None:
    """Schemes of the bundled model, with figures like those measured on a CPU, and one studied layer by layer."""
    figures = {
        "none": (538, 30.0, 0.0005, 0.99),
        "bnb-int8": (220, 21.0, 0.012, 0.93),
        "bnb-nf4": (180, 9.0, 0.187, 0.70),
        "torchao-int8-weight-only": (221, 26.0, 0.011, 0.94),
    }
    for name, (weights, speed, kl, top1) in figures.items():
        recipe = bundled().replace({"quantization.scheme": name})
        memory = fakes.memory().model_copy(
            update={"weights_bytes": weights * fakes.MB, "peak_bytes": (weights + 92) * fakes.MB}
        )
        measurement = fakes.ok_run().measurement.model_copy(
            update={"output_tok_s": speed, "tpot_ms": fakes.quantiles(1000 / speed)}
        )
        wb.add(fakes.ok_run(f"run-{name}", recipe, memory=memory, measurement=measurement))
        wb.studies.stored += (fakes.fidelity(recipe, kl, top1),)
    result = fakes.sensitivity().model_dump(mode="json")
    wb.studies.newest["sensitivity"] = fakes.study_job("sensitivity", state="done", progress=None, result=result)


STATE = sys.argv[1] if len(sys.argv) > 1 else "ready"
if not hasattr(workbench, "_fake"):
    workbench._fake = build(STATE)
    workbench.get_workbench = lambda: workbench._fake
runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
