"""Lost Runs: a Run for a bench whose process could not store one: it was killed, or cancelled at its very start.

Everything runs on one asyncio loop; storing is done in a thread. This file does not know how a bench measures.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp_core import hardware
from mcp_core.errors import StoreError, error_from
from mcp_core.jobs import REQUEST
from mcp_core.recipe import Recipe
from mcp_core.views import JobView

if TYPE_CHECKING:
    from mcp_core.decision.store import Store

__all__ = ["LostRuns"]

log = logging.getLogger(__name__)


class LostRuns:
    """``store`` opens the store at the first lost Run, not before."""

    def __init__(self, store: Callable[[], Store]) -> None:
        self._store = store
        self._storing: set[asyncio.Task[None]] = set()

    def after_job(self, job: JobView) -> None:
        """Store a Run that says why there are no figures, where the job left none."""
        if job.verb == "bench" and job.run is None and job.failure is not None:
            task = asyncio.create_task(asyncio.to_thread(self._keep, job))
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)

    async def close(self) -> None:
        """Return when all are stored."""
        await asyncio.gather(*self._storing, return_exceptions=True)

    def _keep(self, job: JobView) -> None:
        from mcp_core.evaluation.benchmark import unmeasured

        assert job.folder is not None
        assert job.workload is not None
        assert job.failure is not None
        recipe = Recipe.from_dict(json.loads((job.folder / REQUEST).read_text())["recipe"])
        error = error_from(job.failure.model_dump())
        try:
            self._store().add(unmeasured(recipe, job.workload, hardware.detect(), error))
        except StoreError as problem:
            log.warning("%s", problem)
