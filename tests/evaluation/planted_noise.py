"""Whether a sweep's Runs are disturbed, planted by the prompts they send, whatever this machine does meanwhile.

``SWEEP_NOISY`` names repeats of the workload, as "2,4"; Runs under any other are comparable.
"""

from __future__ import annotations

import os
from typing import Any

from mcp_core.evaluation import sweep
from mcp_core.evaluation.benchmark import measure
from mcp_core.results import Comparable, Run
from mcp_core.workload import Workload

NOISE = "noisy: other processes used 0.9 cores meanwhile"


async def planted(url: str, token: str, recipe: Any, workload: Workload, *rest: Any, **more: Any) -> Run:
    """Stands for ``sweep.measure``."""
    run = await measure(url, token, recipe, workload, *rest, **more)
    noisy = str(workload.repeat) in os.environ.get("SWEEP_NOISY", "").split(",")
    comparable = Comparable(ok=False, reasons=(NOISE,)) if noisy else Comparable()
    return run.model_copy(update={"comparable": comparable})


def install() -> None:
    """For a process that ends with the test."""
    sweep.measure = planted  # type: ignore[attr-defined]
