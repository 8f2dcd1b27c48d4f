"""Server time of a rerun of every page, ms, as JSON: median of nine after two to warm up.

``python tests/bench/reruns.py empty|ready``; ready has the bundled model loaded.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from streamlit.testing.v1 import AppTest  # noqa: E402

from mcp_core.presets import bundled  # noqa: E402
from pages._ui import workbench  # noqa: E402

PAGES = ("home", "recipe", "playground", "measure", "monitor", "runs")


def main(scenario: str) -> None:
    wb = workbench.get_workbench()
    if scenario == "ready":
        load(wb)
    print(json.dumps({name: rerun_ms(name) for name in PAGES}))
    wb.close()


def load(wb: workbench.Workbench) -> None:
    worker_id = wb.load(bundled())
    while (view := wb.worker(worker_id)) is not None and view.state == "starting":
        time.sleep(0.1)
    assert view is not None
    assert view.state == "ready", view.failure


def rerun_ms(name: str) -> float:
    at = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    times = []
    for _ in range(11):
        started = time.perf_counter()
        at.run()
        times.append((time.perf_counter() - started) * 1e3)
        assert not at.exception
        assert at.title, f"{name} drew nothing"
    return statistics.median(times[2:])


if __name__ == "__main__":
    main(sys.argv[1])
