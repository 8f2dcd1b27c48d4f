"""The whole app over a FakeWorkbench, for looking at it: streamlit run tests/pages/fake_app.py -- STATE.

STATE is one of: empty, loading, ready, failed, gpu.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "pages"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import fake_workbench as fakes  # noqa: E402 - after the path is set

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
    wb.machine = fakes.hardware(gpu=wb.gpu)
    view = {"loading": fakes.loading_worker, "failed": fakes.failed_worker}.get(state, fakes.ready_worker)()
    wb.add(view)
    if state == "ready":
        wb.add(fakes.running_job(), fakes.conversation())
        wb.engine_stats["w1"] = fakes.EngineStats(running=1, queued=2, max_requests=64)
    return wb


STATE = sys.argv[1] if len(sys.argv) > 1 else "ready"
if not hasattr(workbench, "_fake"):
    workbench._fake = build(STATE)
    workbench.get_workbench = lambda: workbench._fake
runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
