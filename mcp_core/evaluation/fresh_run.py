"""One Run in a process of its own: a worker started for it, measured and ended; or someone's server at its URL.

This file does not know why it is measured, and it does not store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from mcp_core import devices
from mcp_core.errors import Cancelled, McpError
from mcp_core.evaluation.benchmark import measure, unmeasured
from mcp_core.evaluation.loadgen import OnProgress
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run
from mcp_core.serving.supervisor import Supervisor
from mcp_core.workload import Workload

__all__ = ["FreshRun", "fresh_run"]

# A Run, its request records and its telemetry as a JSON document.
FreshRun = tuple[Run, Sequence[RequestRecord], Any]


async def fresh_run(
    recipe: Recipe, workload: Workload, hardware: Hardware, on_progress: OnProgress | None = None
) -> FreshRun:
    """Measure; what goes wrong is a Run, too. Raises Cancelled when it is stopped."""
    kept: list[FreshRun] = []

    def keep(run: Run, records: Sequence[RequestRecord], telemetry: Any) -> None:
        kept.append((run, records, telemetry))

    if recipe.model.source == "endpoint":
        await measure(recipe.model.id, None, recipe, workload, hardware, on_progress=on_progress, keep=keep)
        return _unless_stopped(kept[0])
    supervisor = Supervisor()
    try:
        worker = await supervisor.start(recipe, on_progress=on_progress)
        assert worker.url is not None
        await measure(
            worker.url,
            worker.token,
            worker.recipe,
            workload,
            hardware,
            on_progress=on_progress,
            keep=keep,
            lease=devices.acquire(
                worker.recipe.device, "measure", f"verify {workload.name}", besides=[worker.lease.holder.id]
            ),
            control_url=worker.control_url,
        )
        return _unless_stopped(kept[0])
    except asyncio.CancelledError:
        raise Cancelled("It was stopped.", "Nothing was decided.") from None
    except Cancelled:
        raise
    except McpError as error:
        return unmeasured(recipe, workload, hardware, error), (), None
    finally:
        await supervisor.close()


def _unless_stopped(found: FreshRun) -> FreshRun:
    if found[0].status == "cancelled":
        raise Cancelled("The measurement was stopped.", "Nothing was decided.")
    return found
